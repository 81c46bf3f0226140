//go:build kernel

package driver

import (
	"os/exec"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// Lists, single queries and the capacity agree with the volumes and snapshots
// that exist.
func TestControllerQueries_listsAndCapacity(t *testing.T) {
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
	// A volume of the promised maximum size can be created.
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

// A volume group that cannot be changed has no room, so no pod is sent there.
// The room is back once the group can be changed.
func TestGetCapacity_unchangeableGroup(t *testing.T) {
	disks := scratch(t)
	r := rigOf(t, pool.Config{Name: "fast", VolumeGroup: "vgdriver", Devices: disks[:2]})
	room := func() (free, largest int64) {
		t.Helper()
		a, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{})
		r.must("capacity", err)
		return a.GetAvailableCapacity(), a.GetMaximumVolumeSize().GetValue()
	}
	becomes := func(what string, none bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			free, largest := room()
			if none == (free == 0 && largest == 0) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: room for %d bytes, for a volume of %d", what, free, largest)
			}
		}
	}
	becomes("a new pool", false)
	lvm := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	lvm("vgexport", "-qq", "vgdriver")
	becomes("exported", true)
	lvm("vgimport", "-qq", "vgdriver")
	becomes("imported", false)
	const there = `global/system_id_source="lvmlocal" local/system_id="elsewhere"`
	lvm("vgchange", "-qq", "-y", "--systemid", "elsewhere", "vgdriver")
	becomes("of another system", true)
	lvm("vgchange", "-qq", "-y", "--config", there, "--systemid", "", "vgdriver")
	becomes("of this system again", false)
	r.stop()
	r.configs[0].Create = false // otherwise the disk would seem blank
	label := r.overwriteLabel(disks[1], make([]byte, 4096))
	r.start()
	if p, err := r.pools.Pool("fast"); err != nil {
		t.Fatalf("without a disk: %v", err)
	} else if u, err := p.Usage(); err != nil || u.Free != 0 || u.Total == 0 {
		t.Errorf("without a disk: usage %+v, %v", u, err)
	}
	becomes("without a disk", true)
	r.overwriteLabel(disks[1], label)
	becomes("with its disk again", false)
}

// A pool with less room than the smallest file system has no room for volumes
// with this file system.
func TestGetCapacity_lessThanFilesystem(t *testing.T) {
	r := newRig(t)
	room := func(c *csi.VolumeCapability) int64 {
		t.Helper()
		got, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{VolumeCapabilities: []*csi.VolumeCapability{c}})
		r.must("capacity", err)
		if got.GetMaximumVolumeSize().GetValue() > got.GetAvailableCapacity() {
			t.Errorf("%v: %v", c, got)
		}
		return got.GetMaximumVolumeSize().GetValue()
	}
	xfs, blk := mount(writer, filesystem.XFS), block(writer)
	if room(xfs) < 300<<20 {
		t.Errorf("an empty pool: %d for xfs, %d for blocks", room(xfs), room(blk))
	}
	r.volume(request("large", room(blk)>>20-200, blk))
	if room(blk) == 0 || room(xfs) != 0 || room(mount(writer, "")) == 0 {
		t.Errorf("with 200 MiB left: %d for xfs, %d for blocks, %d for the default", room(xfs), room(blk), room(mount(writer, "")))
	}
	_, err := r.CreateVolume(t.Context(), request("xfs", 64, xfs))
	r.want("xfs", err, codes.ResourceExhausted)
}
