//go:build kernel

package driver

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/internal/reports"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// Who rolled a volume back beside the driver is told, by the volume's id: once, again by
// a driver that starts, and not when it is no news any more.
func TestReportDeed(t *testing.T) {
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
		t.Errorf("told as news a day later: %+v", told[2:])
	}
	_, err = r.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: snapshot})
	r.must("delete snapshot", err)
	r.must("delete", r.remove(id))
}
