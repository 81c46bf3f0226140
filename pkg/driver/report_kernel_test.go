//go:build kernel

package driver

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/internal/reports"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// A snapshot whose store is full is reported with its id, once by each process
// of the driver. Its volume is not reported.
func TestReportNew_lostSnapshot(t *testing.T) {
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
		t.Fatalf("reported while nothing is wrong: %+v", told)
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
			t.Fatalf("the lost snapshot is not reported: %+v", told)
		}
		look(known)
	}
	if i := slices.IndexFunc(told, lost); !told[i].Lasting {
		t.Error("a lost snapshot is not a lasting fact")
	}
	if slices.ContainsFunc(told, is(roleapi.Happening_KIND_VOLUME, volume, "SnapshotLost")) {
		t.Error("the volume is also reported")
	}
	before := len(told)
	look(known)
	if len(told) != before {
		t.Errorf("reported twice: %+v", told[before:])
	}
	told = nil
	if look(map[concern]time.Time{}); !slices.ContainsFunc(told, lost) {
		t.Errorf("not reported after a restart: %+v", told)
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

// A rollback by command is reported with the volume's id: once by each process
// of the driver, and not after a day.
func TestReportDeeds_rollback(t *testing.T) {
	config := pool.Config{Name: "fast", VolumeGroup: "vgdriver", Devices: scratch(t), Create: true}
	r := rigOf(t, config)
	block := &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
	id := r.volume(request("v", 32, block))
	snapshot := r.snapshot("s", id)
	volume, _ := handle.Parse(id)
	layer, _ := handle.Parse(snapshot)
	_, err := pool.Rollback(t.Context(), config, pool.Options{By: "alice (uid 7) on n"}, pool.RollbackSpec{Volume: volume.LV, Snapshot: layer.LV})
	r.must("roll back", err)
	d, err := New(Options{NodeName: "node-1", KubeletDir: r.kubelet, Pools: r.pools})
	r.must("driver", err)
	var told []reports.Happening
	look := func(known map[pool.Deed]bool, now time.Time) {
		d.reportDeeds(t.Context(), known, now, func(_ context.Context, h reports.Happening) { told = append(told, h) })
	}
	known := map[pool.Deed]bool{}
	for end := time.Now().Add(30 * time.Second); len(told) == 0 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		look(known, time.Now())
	}
	if look(known, time.Now()); len(told) != 1 {
		t.Fatalf("told: %+v", told)
	}
	if h := told[0]; h.Kind != roleapi.Happening_KIND_VOLUME || h.ID != id || h.Reason != "RolledBack" || h.Warning || !h.Lasting ||
		!strings.Contains(h.Message, "alice (uid 7) on n rolled the volume back to snapshot s, taken ") {
		t.Errorf("told: %+v", h)
	}
	if look(map[pool.Deed]bool{}, time.Now()); len(told) != 2 || told[1] != told[0] {
		t.Errorf("by a driver that starts: %+v", told)
	}
	if look(map[pool.Deed]bool{}, time.Now().Add(deedMaxAge+time.Minute)); len(told) != 2 {
		t.Errorf("reported a day later: %+v", told[2:])
	}
	_, err = r.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: snapshot})
	r.must("delete snapshot", err)
	r.must("delete", r.remove(id))
}
