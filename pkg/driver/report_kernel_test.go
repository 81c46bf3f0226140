//go:build kernel

package driver

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/internal/reports"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// A snapshot whose store is full is told of, by its id, and the pool that has
// no room for it too; once, and in a new epoch again.
func TestReportLost(t *testing.T) {
	r := rigOf(t, pool.Config{Name: "fast", VolumeGroup: "vgdriver", Devices: scratch(t), LayerReserve: 1})
	block := &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
	volume := r.volume(request("v", 64, block))
	room, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{})
	r.must("capacity", err)
	fill := r.volume(request("fill", room.GetAvailableCapacity()>>20, block))
	d, err := New(Options{NodeName: "node-1", KubeletDir: r.kubelet, Pools: r.pools})
	r.must("another driver", err)
	known := map[concern]time.Time{}
	var told []reports.Happening
	look := func(known map[concern]time.Time) {
		d.reportNew(t.Context(), known, time.Now(), func(_ context.Context, h reports.Happening) { told = append(told, h) })
	}
	snapshot := r.snapshot("s", volume)
	path := r.device(volume)
	if look(known); len(told) != 0 {
		t.Fatalf("told while all is well: %+v", told)
	}
	r.must("overwrite the volume", os.WriteFile(path, make([]byte, 64<<20), 0))
	is := func(kind roleapi.Happening_Kind, id, reason string) func(reports.Happening) bool {
		return func(h reports.Happening) bool {
			return h.Kind == kind && h.ID == id && h.Reason == reason && h.Warning && h.Message != ""
		}
	}
	lost := is(roleapi.Happening_KIND_SNAPSHOT, snapshot, "SnapshotLost")
	for end := time.Now().Add(30 * time.Second); !slices.ContainsFunc(told, lost); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nothing is told of the lost snapshot: %+v", told)
		}
		look(known)
	}
	if i := slices.IndexFunc(told, lost); !told[i].Lasting {
		t.Error("a lost snapshot is not a lasting fact")
	}
	if slices.ContainsFunc(told, is(roleapi.Happening_KIND_VOLUME, volume, "SnapshotLost")) {
		t.Error("told of the volume too")
	}
	before := len(told)
	look(known)
	if len(told) != before {
		t.Errorf("told twice: %+v", told[before:])
	}
	told = nil
	if look(map[concern]time.Time{}); !slices.ContainsFunc(told, lost) {
		t.Errorf("not told after a restart: %+v", told)
	}
	_, err = r.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: snapshot})
	r.must("delete snapshot", err)
	p, err := r.pools.Pool("fast")
	r.must("pool", err)
	v, err := p.VolumeNamed(t.Context(), "v")
	r.must("volume", err)
	r.must("deactivate", p.Deactivate(t.Context(), v.LV))
	r.must("delete", r.remove(volume))
	r.must("delete", r.remove(fill))
}
