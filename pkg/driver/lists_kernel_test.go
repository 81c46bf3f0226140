//go:build kernel

package driver

import (
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

func TestListsAndCapacity(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	capacity := func(q *csi.GetCapacityRequest) *csi.GetCapacityResponse {
		t.Helper()
		c, err := r.GetCapacity(ctx, q)
		r.must("capacity", err)
		return c
	}
	before := capacity(&csi.GetCapacityRequest{})
	if before.GetAvailableCapacity() == 0 || before.GetMaximumVolumeSize().GetValue() > before.GetAvailableCapacity() {
		t.Errorf("capacity of an empty pool: %v", before)
	}
	for _, q := range []*csi.GetCapacityRequest{
		{Parameters: map[string]string{"pool": "slow"}},
		{AccessibleTopology: &csi.Topology{Segments: map[string]string{handle.TopologyKey: "node-2"}}},
		{VolumeCapabilities: []*csi.VolumeCapability{mount(writer, "vfat")}},
	} {
		if c := capacity(q); c.GetAvailableCapacity() != 0 {
			t.Errorf("%v: %v", q, c)
		}
	}
	var volumes []string
	for _, name := range []string{"a", "b", "c"} {
		volumes = append(volumes, r.volume(request(name, 32, block(writer))))
	}
	after := capacity(&csi.GetCapacityRequest{
		Parameters:         map[string]string{"pool": "fast"},
		AccessibleTopology: &csi.Topology{Segments: map[string]string{handle.TopologyKey: "node-1"}},
		VolumeCapabilities: []*csi.VolumeCapability{mount(writer, "")},
	})
	if got := before.GetAvailableCapacity() - after.GetAvailableCapacity(); got != 96<<20 {
		t.Errorf("three volumes of 32 MiB took %d bytes", got)
	}
	// The largest volume that is promised can be made.
	largest := r.volume(&csi.CreateVolumeRequest{
		Name: "largest", VolumeCapabilities: []*csi.VolumeCapability{block(writer)},
		CapacityRange: &csi.CapacityRange{RequiredBytes: after.GetMaximumVolumeSize().GetValue()},
	})
	r.must("delete", r.remove(largest))

	first, err := r.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: 2})
	if err != nil || len(first.GetEntries()) != 2 || first.GetNextToken() == "" {
		t.Fatalf("first page: %v, %v", first, err)
	}
	r.must("delete", r.remove(first.GetEntries()[1].GetVolume().GetVolumeId()))
	second, err := r.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: 2, StartingToken: first.GetNextToken()})
	if err != nil || len(second.GetEntries()) != 1 || second.GetNextToken() != "" {
		t.Errorf("second page: %v, %v", second, err)
	}
	one, two := r.snapshot("s1", volumes[0]), r.snapshot("s2", volumes[0])
	other := r.snapshot("s3", volumes[2])
	list := func(q *csi.ListSnapshotsRequest, want int) {
		t.Helper()
		l, err := r.ListSnapshots(ctx, q)
		if err != nil || len(l.GetEntries()) != want {
			t.Errorf("%v: %v, %v; want %d", q, l, err, want)
		}
	}
	list(&csi.ListSnapshotsRequest{}, 3)
	list(&csi.ListSnapshotsRequest{SourceVolumeId: volumes[0]}, 2)
	list(&csi.ListSnapshotsRequest{SnapshotId: other}, 1)
	list(&csi.ListSnapshotsRequest{SnapshotId: other, SourceVolumeId: volumes[0]}, 0)
	list(&csi.ListSnapshotsRequest{SourceVolumeId: volumes[1]}, 0)
	again, err := r.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "s1", SourceVolumeId: volumes[0]})
	stored, err2 := r.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: one})
	if err != nil || err2 != nil || again.GetSnapshot().String() != stored.GetSnapshot().String() {
		t.Errorf("repeated CreateSnapshot and GetSnapshot differ: %v, %v; %v, %v", again, err, stored, err2)
	}
	if one == two || stored.GetSnapshot().GetCreationTime().AsTime().IsZero() || stored.GetSnapshot().GetSizeBytes() != 32<<20 {
		t.Errorf("snapshots: %s, %s, %v", one, two, stored)
	}
	v, err := r.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: volumes[0], VolumeCapabilities: []*csi.VolumeCapability{block(multiWriter)}})
	if err != nil || v.GetConfirmed() == nil {
		t.Errorf("validate block: %v, %v", v, err)
	}
	v, err = r.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: volumes[0], VolumeCapabilities: []*csi.VolumeCapability{mount(writer, "")}})
	if err != nil || v.GetConfirmed() == nil {
		t.Errorf("validate a file system on block: %v, %v", v, err)
	}
	v, err = r.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: volumes[0], VolumeCapabilities: []*csi.VolumeCapability{mount(writer, "vfat")}})
	if err != nil || v.GetConfirmed() != nil || v.GetMessage() == "" {
		t.Errorf("validate vfat: %v, %v", v, err)
	}
	h, err := r.ControllerListVolumeHealth(ctx, &csi.ControllerListVolumeHealthRequest{})
	if err != nil || len(h.GetEntries()) != 0 {
		t.Errorf("health: %v, %v", h, err)
	}
}
