package driver

import (
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// A topology requirement includes the node if any requisite topology does, or
// if there is none.
func TestReachable_requisite(t *testing.T) {
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

// New refuses options with which the driver cannot serve.
func TestNew_invalidOptions(t *testing.T) {
	pools := closedPools(t)
	for name, o := range map[string]Options{
		"no node name":   {KubeletDir: "/", Pools: pools},
		"node name":      {NodeName: "a:b", KubeletDir: "/", Pools: pools},
		"no pools":       {NodeName: "n1", KubeletDir: "/"},
		"no kubelet dir": {NodeName: "n1", KubeletDir: "/does/not/exist", Pools: pools},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
