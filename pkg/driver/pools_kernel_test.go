//go:build kernel

package driver

import (
	"fmt"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

func TestSeveralPools(t *testing.T) {
	disks := scratch(t)
	r := rigOf(t, pool.Config{Name: "one", VolumeGroup: "vgone", Devices: disks[:1]},
		pool.Config{Name: "two", VolumeGroup: "vgtwo", Devices: disks[1:2]})
	in := func(pool, name string, source *csi.VolumeContentSource) *csi.CreateVolumeRequest {
		q := request(name, 64, block(writer))
		q.VolumeContentSource = source
		if pool != "" {
			q.Parameters = map[string]string{"pool": pool}
		}
		return q
	}
	a := r.volume(in("one", "a", nil))
	b := r.volume(in("two", "b", nil))
	if a != "v1:node-1:one:a" || b != "v1:node-1:two:b" {
		t.Errorf("ids %s, %s", a, b)
	}
	for _, c := range []struct {
		q    *csi.CreateVolumeRequest
		want codes.Code
	}{
		{in("", "c", nil), codes.InvalidArgument},
		{in("three", "c", nil), codes.ResourceExhausted},
		{in("two", "a", nil), codes.AlreadyExists},
		{in("one", "c", fromVolume(a)), codes.OK},
		{in("two", "c", fromVolume(a)), codes.AlreadyExists},
	} {
		_, err := r.CreateVolume(t.Context(), c.q)
		r.want(c.q.String(), err, c.want)
	}
	list, err := r.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: 2})
	if err != nil || len(list.GetEntries()) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	list, err = r.ListVolumes(t.Context(), &csi.ListVolumesRequest{StartingToken: list.GetNextToken()})
	if err != nil || len(list.GetEntries()) != 1 || list.GetEntries()[0].GetVolume().GetVolumeId() != b {
		t.Errorf("second page: %v, %v", list, err)
	}
	var free [3]int64
	for i, parameters := range []map[string]string{{"transient": "true"}, {"pool": "one"}, {"pool": "two"}} {
		c, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{Parameters: parameters})
		r.must("capacity", err)
		free[i] = c.GetAvailableCapacity()
	}
	if free[0] != free[1]+free[2] || free[1] == 0 {
		t.Errorf("capacity of any, one, two: %v", free)
	}
}

// A clone is there at once, and asked for again it is the same one.
func TestCloneAtOnce(t *testing.T) {
	r := newRig(t)
	q := request("copy", 640, block(writer))
	q.VolumeContentSource = fromVolume(r.volume(request("source", 640, block(writer))))
	// Of several at once some may be refused.
	results := make(chan error)
	for range 8 {
		go func() {
			_, err := r.CreateVolume(t.Context(), q)
			results <- err
		}()
	}
	count := map[codes.Code]int{}
	for range 8 {
		count[status.Code(<-results)]++
	}
	if count[codes.OK] == 0 || count[codes.Aborted] == 0 || count[codes.OK]+count[codes.Aborted] != 8 {
		t.Errorf("asked for at the same time: %v", count)
	}
	id := r.volume(q)
	list, err := r.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
	if err != nil || len(list.GetEntries()) != 2 || r.volume(q) != id {
		t.Errorf("after that: %v, %v", list, err)
	}
}

func TestFullPool(t *testing.T) {
	r := newRig(t)
	var volumes []string
	for i := range 12 {
		volumes = append(volumes, r.volume(request(fmt.Sprint("v", i), 32, block(writer))))
	}
	c, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{})
	r.must("capacity", err)
	r.volume(request("rest", c.GetMaximumVolumeSize().GetValue()>>20, block(writer)))
	_, err = r.CreateVolume(t.Context(), request("more", 32, block(writer)))
	r.want("volume in a full pool", err, codes.ResourceExhausted)
	_, err = r.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
		VolumeId: volumes[0], CapacityRange: &csi.CapacityRange{RequiredBytes: 64 << 20},
	})
	r.want("expand in a full pool", err, codes.OutOfRange)
	// The reserve for snapshots lasts for some of them.
	cut := 0
	for _, v := range volumes {
		_, err = r.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: v, SourceVolumeId: v})
		if err != nil {
			break
		}
		cut++
	}
	r.want("snapshot in a full pool", err, codes.ResourceExhausted)
	if cut == 0 {
		t.Error("no snapshot found room in the reserve")
	}
}
