package driver

import (
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

func TestCapacityRange(t *testing.T) {
	for _, c := range []struct {
		required, limit int64
		want            codes.Code
	}{
		{0, 0, codes.OK}, {1, 0, codes.OK}, {0, 1, codes.OK}, {5, 5, codes.OK},
		{-1, 0, codes.InvalidArgument}, {0, -1, codes.InvalidArgument}, {6, 5, codes.OutOfRange},
	} {
		required, limit, err := capacityRange(&csi.CapacityRange{RequiredBytes: c.required, LimitBytes: c.limit})
		if status.Code(err) != c.want || err == nil && (int64(required) != c.required || int64(limit) != c.limit) {
			t.Errorf("%+v: %d, %d, %v", c, required, limit, err)
		}
	}
	if required, limit, err := capacityRange(nil); required != 0 || limit != 0 || err != nil {
		t.Errorf("no range: %d, %d, %v", required, limit, err)
	}
}

func TestCheckParameters(t *testing.T) {
	for key, ok := range map[string]bool{
		"pool": true, "fstype": true, "csi.storage.k8s.io/pvc/name": true,
		"Pool": false, "csi.storage.k8s.io": false, "chunk": false, "": false,
	} {
		if err := checkParameters(map[string]string{key: "x"}, "pool", "fstype"); (err == nil) != ok {
			t.Errorf("%q: %v", key, err)
		}
	}
}

// A node without any pool is no place for a new volume, and another one may be.
func TestPlaceWithoutPools(t *testing.T) {
	d := &Driver{node: "n1", pools: &pool.Set{}}
	for _, class := range []parameters{{}, {pool: "fast"}, {transient: true}} {
		if _, err := d.place(class, nil); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("%+v: %v", class, err)
		}
	}
}

func TestReachable(t *testing.T) {
	d := &Driver{node: "n1"}
	on := func(segments ...string) (list []*csi.Topology) {
		for i := 0; i < len(segments); i += 2 {
			list = append(list, &csi.Topology{Segments: map[string]string{segments[i]: segments[i+1]}})
		}
		return list
	}
	for _, c := range []struct {
		r    *csi.TopologyRequirement
		want codes.Code
	}{
		{nil, codes.OK},
		{&csi.TopologyRequirement{}, codes.OK},
		{&csi.TopologyRequirement{Requisite: on(handle.TopologyKey, "n1")}, codes.OK},
		{&csi.TopologyRequirement{Requisite: on(handle.TopologyKey, "n2", handle.TopologyKey, "n1")}, codes.OK},
		{&csi.TopologyRequirement{Preferred: on(handle.TopologyKey, "n2")}, codes.OK},
		{&csi.TopologyRequirement{Requisite: on("zone", "z")}, codes.OK},
		{&csi.TopologyRequirement{Requisite: on(handle.TopologyKey, "n2"), Preferred: on(handle.TopologyKey, "n1")}, codes.ResourceExhausted},
	} {
		if err := d.reachable(c.r); status.Code(err) != c.want {
			t.Errorf("%v: %v, want %v", c.r, err, c.want)
		}
	}
}

func TestMerge(t *testing.T) {
	got := merge([]pool.Condition{
		{Severity: pool.Degraded, Reason: "SnapshotLost", Message: "a"},
		{Severity: pool.Degraded, Reason: "SnapshotSpaceLow", Message: "b"},
		{Severity: pool.Degraded, Reason: "SnapshotLost", Message: "c"},
		{Severity: pool.DataLoss, Reason: "SnapshotLost", Message: "d"},
	})
	if len(got) != 3 || got[0].Message != "a; c" || got[2].Message != "d" {
		t.Errorf("%+v", got)
	}
}
