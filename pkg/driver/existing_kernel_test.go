//go:build kernel

package driver

import (
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// A request that must create nothing creates nothing, and a reserved name can
// be used only by the controller that reserved it.
func TestMayCreate_conditions(t *testing.T) {
	disks := scratch(t)
	r := rigOf(t, pool.Config{Name: "one", VolumeGroup: "vgone", Devices: disks[:1]},
		pool.Config{Name: "two", VolumeGroup: "vgtwo", Devices: disks[1:2]})
	create := func(name, pool string, c callmeta.Conditions) (string, error) {
		q := request(name, 64, block(writer))
		q.Parameters = map[string]string{"pool": pool}
		reply, err := r.CreateVolume(callmeta.For(t.Context(), "node-1", c), q)
		return reply.GetVolume().GetVolumeId(), err
	}
	look := callmeta.Conditions{OnlyExisting: true}
	reserve := func(of string) callmeta.Conditions {
		return callmeta.Conditions{OnlyExisting: true, Reservation: of}
	}
	held := func(of string) callmeta.Conditions { return callmeta.Conditions{Reservation: of} }

	_, err := create("v", "one", look)
	r.want("look for what is not there", err, codes.NotFound)
	_, err = create("v", "one", held("a/1"))
	r.want("create without the reservation", err, codes.Aborted)
	_, err = create("v", "one", reserve("a/1"))
	r.want("reserve", err, codes.NotFound)
	_, err = create("v", "one", reserve("b/1"))
	r.want("reserve what another one has", err, codes.Aborted)
	list, err := r.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
	if err != nil || len(list.GetEntries()) != 0 {
		t.Fatalf("a volume was created: %v, %v", list, err)
	}
	id, err := create("v", "one", held("a/1"))
	r.want("create", err, codes.OK)
	for what, c := range map[string]callmeta.Conditions{"look": look, "reserve": reserve("b/2")} {
		again, err := create("v", "one", c)
		if err != nil || again != id {
			t.Errorf("%s for an existing volume: %q, %v", what, again, err)
		}
		_, err = create("v", "two", c)
		r.want(what+" in another pool", err, codes.AlreadyExists)
	}

	cut := func(name, source string, c callmeta.Conditions) (string, error) {
		reply, err := r.CreateSnapshot(callmeta.For(t.Context(), "node-1", c), &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: source})
		return reply.GetSnapshot().GetSnapshotId(), err
	}
	_, err = cut("s", id, look)
	r.want("look for a snapshot that is not there", err, codes.NotFound)
	_, err = cut("s", "v1:node-2:one:v", look)
	r.want("look for a snapshot of another node's volume", err, codes.NotFound)
	s, err := cut("s", id, callmeta.Conditions{})
	r.want("cut", err, codes.OK)
	again, err := cut("s", id, look)
	if err != nil || again != s {
		t.Errorf("look for a snapshot: %q, %v", again, err)
	}
	again, err = cut("s", "v1:node-2:one:v", look)
	if err != nil || again != s {
		t.Errorf("the name is asked for another node's volume: %q, %v", again, err)
	}
	_, err = r.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: s})
	r.must("delete snapshot", err)
	r.must("delete volume", r.remove(id))
	_, err = create("v", "one", look)
	r.want("look for what was deleted", err, codes.NotFound)
}

// TestReserve_manyNames: Reserve answers for each of many names what a CreateVolume that
// must create nothing answers, and reserves the free names only.
func TestReserve_manyNames(t *testing.T) {
	disks := scratch(t)
	r := rigOf(t, pool.Config{Name: "one", VolumeGroup: "vgone", Devices: disks[:1]},
		pool.Config{Name: "two", VolumeGroup: "vgtwo", Devices: disks[1:2]})
	create := func(name, of string) error {
		q := request(name, 64, block(writer))
		q.Parameters = map[string]string{"pool": "one"}
		_, err := r.CreateVolume(callmeta.For(t.Context(), "node-1", callmeta.Conditions{Reservation: of}), q)
		return err
	}
	r.want("create", create("there", ""), codes.OK)
	asked := []struct {
		name, reservation, pool string
		want                    codes.Code
	}{
		{"free", "a/1", "one", codes.NotFound},
		{"free", "b/1", "one", codes.Aborted},
		{"free", "", "one", codes.NotFound},
		{"there", "a/2", "one", codes.OK},
		{"there", "a/2", "two", codes.OK},
		{"there", "a/2", "", codes.OK},
		{"", "a/4", "one", codes.InvalidArgument},
		{"strange", "a/5", "three", codes.NotFound},
		{"later", "a/6", "two", codes.NotFound},
	}
	q := &roleapi.ReserveRequest{}
	for _, a := range asked {
		q.Names = append(q.Names, &roleapi.WantedName{Name: a.name, Reservation: a.reservation, Pool: a.pool})
	}
	reply, err := r.Reserve(t.Context(), q)
	if err != nil || len(reply.GetAnswers()) != len(asked) {
		t.Fatalf("%v, %v", reply, err)
	}
	for i, a := range reply.GetAnswers() {
		if got := codes.Code(a.GetCode()); got != asked[i].want || (got == codes.Aborted || got == codes.InvalidArgument) && a.GetMessage() == "" {
			t.Errorf("%+v: %v, %q", asked[i], got, a.GetMessage())
		}
	}
	r.want("create with another reservation", create("free", "b/1"), codes.Aborted)
	r.want("create with the reservation", create("free", "a/1"), codes.OK)
	r.want("create what was not reserved", create("there2", "a/2"), codes.Aborted)
}
