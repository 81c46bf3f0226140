//go:build kernel

package driver

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// overwriteLabel overwrites the first sectors of a physical volume, which have its
// label, and returns the former content.
func (r *rig) overwriteLabel(disk string, content []byte) []byte {
	r.t.Helper()
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	r.must("open "+disk, err)
	defer f.Close()
	was := make([]byte, 4096)
	_, err = f.ReadAt(was, 0)
	r.must("read "+disk, err)
	_, err = f.WriteAt(content, 0)
	r.must("write "+disk, err)
	r.must("sync "+disk, f.Sync())
	return was
}

// Calls for a pool that cannot be opened fail with the reason. The other pool
// works, and no volume seems deleted. The pool opens automatically once its
// disk is readable.
func TestPool_notOpen(t *testing.T) {
	disks, ctx := scratch(t), t.Context()
	r := rigOf(t, pool.Config{Name: "one", VolumeGroup: "vgone", Devices: disks[:1]},
		pool.Config{Name: "two", VolumeGroup: "vgtwo", Devices: disks[1:2]})
	in := func(pool, name string) *csi.CreateVolumeRequest {
		q := request(name, 64, mount(writer, "ext4"))
		q.Parameters = map[string]string{"pool": pool}
		return q
	}
	a, b := r.volume(in("one", "a")), r.volume(in("two", "b"))
	s1, s2 := r.snapshot("s1", a), r.snapshot("s2", b)
	r.must("stage", r.stage(b, "staging-b", mount(writer, "ext4")))
	r.must("publish", r.publish(b, "staging-b", "target-b", mount(writer, "ext4"), false))

	r.stop()
	r.configs[1].Create = false // otherwise the disk would seem blank
	label := r.overwriteLabel(disks[1], make([]byte, 4096))
	r.start()
	for what, call := range map[string]func() error{
		"create volume": func() error { _, err := r.CreateVolume(ctx, in("two", "c")); return err },
		"existing":      func() error { _, err := r.CreateVolume(ctx, in("two", "b")); return err },
		"delete volume": func() error { return r.remove(b) },
		"get volume": func() error {
			_, err := r.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: b})
			return err
		},
		"create snapshot": func() error {
			_, err := r.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "s3", SourceVolumeId: b})
			return err
		},
		"delete snapshot": func() error {
			_, err := r.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: s2})
			return err
		},
		"list volumes":   func() error { _, err := r.ListVolumes(ctx, &csi.ListVolumesRequest{}); return err },
		"list snapshots": func() error { _, err := r.ListSnapshots(ctx, &csi.ListSnapshotsRequest{}); return err },
		"its snapshots": func() error {
			_, err := r.ListSnapshots(ctx, &csi.ListSnapshotsRequest{SourceVolumeId: b})
			return err
		},
		"its snapshot": func() error {
			_, err := r.ListSnapshots(ctx, &csi.ListSnapshotsRequest{SnapshotId: s2})
			return err
		},
		"stage": func() error { return r.stage(b, "staging-b", mount(writer, "ext4")) },
	} {
		err := call()
		r.want(what, err, codes.Unavailable)
		if text := status.Convert(err).Message(); !strings.Contains(text, "pool two is not open") || !strings.Contains(text, "vgtwo") {
			t.Errorf("%s: %q does not say which pool and why", what, text)
		}
	}
	if _, err := r.Probe(ctx, &csi.ProbeRequest{}); err != nil {
		t.Errorf("probe: %v", err)
	}
	if info, err := r.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{}); err != nil || info.GetNodeId() != "node-1" {
		t.Errorf("node info: %v, %v", info, err)
	}
	r.volume(in("one", "d"))
	for volume, want := range map[string]int{a: 1, "v1:node-1:three:x": 0, "elsewhere": 0} {
		l, err := r.ListSnapshots(ctx, &csi.ListSnapshotsRequest{SourceVolumeId: volume})
		if err != nil || len(l.GetEntries()) != want {
			t.Errorf("snapshots of %s: %v, %v", volume, l, err)
		}
	}
	if l, err := r.ListSnapshots(ctx, &csi.ListSnapshotsRequest{SnapshotId: s1}); err != nil || len(l.GetEntries()) != 1 {
		t.Errorf("snapshot of the other pool: %v, %v", l, err)
	}
	var free []int64
	for _, parameters := range []map[string]string{nil, {"pool": "one"}, {"pool": "two"}} {
		c, err := r.GetCapacity(ctx, &csi.GetCapacityRequest{Parameters: parameters})
		r.must("capacity", err)
		free = append(free, c.GetAvailableCapacity())
	}
	if free[0] != 0 || free[1] == 0 || free[2] != 0 { // a class without a pool cannot be used on a node with two pools
		t.Errorf("capacity without a pool, of one, of two: %v", free)
	}
	storage, err := r.NodeGetStorageHealth(ctx, &csi.NodeGetStorageHealthRequest{})
	if err != nil || len(storage.GetBackendHealth()) != 1 || storage.GetBackendHealth()[0].GetStatus() != csi.StorageHealthErrorType_STORAGE_UNREACHABLE {
		t.Errorf("storage health: %v, %v", storage, err)
	}
	health, err := r.NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{VolumeId: b})
	if err != nil || len(health.GetVolumeHealth().GetHealthStatuses()) != 1 || health.GetVolumeHealth().GetHealthStatuses()[0].GetStatus() != csi.VolumeHealthErrorType_INACCESSIBLE {
		t.Errorf("volume health: %v, %v", health, err)
	}
	// The pods of its volumes can end.
	r.must("unpublish", r.unpublish(b, "target-b"))
	r.want("unstage", r.unstage(b, "staging-b"), codes.Unavailable)
	if m, err := mountOf(handle.ID{Node: "node-1", Pool: "two", LV: "b"}, r.path("staging-b")); m != nil || err != nil {
		t.Errorf("unstaged, and still mounted: %v, %v", m, err)
	}

	r.overwriteLabel(disks[1], label)
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		l, err := r.ListVolumes(ctx, &csi.ListVolumesRequest{})
		if err == nil && len(l.GetEntries()) == 3 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the pool does not open: %v, %v", l, err)
		}
	}
	r.must("unstage", r.unstage(b, "staging-b"))
	r.must("delete", r.remove(b))
}
