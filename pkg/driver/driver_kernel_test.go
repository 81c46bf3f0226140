//go:build kernel

package driver

import (
	"os"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
)

func (r *rig) total(volume, at string) int64 {
	r.t.Helper()
	s, err := r.NodeGetVolumeStats(r.t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: volume, VolumePath: r.path(at)})
	r.must("stats", err)
	return s.GetUsage()[0].GetTotal()
}

// A file system volume can be written, snapshotted, restored larger, cloned
// beside itself, and expanded in use while it has a snapshot.
func TestDriver_filesystemVolume(t *testing.T) {
	for _, fs := range []string{filesystem.Ext4, filesystem.XFS, filesystem.Btrfs} {
		t.Run(fs, func(t *testing.T) {
			r := newRig(t)
			c := mount(writer, fs)
			least := int64(filesystem.MinimumSize(fs)) >> 20
			volume := r.volume(request("origin", least, c))
			r.must("stage", r.stage(volume, "st", c))
			r.must("publish", r.publish(volume, "st", "tg", c, false))
			r.write("tg", "as it was")
			snapshot := r.snapshot("snapshot", volume)
			r.write("tg", "as it is")

			larger := request("restored", least+64, mount(writer, "")) // it gets the source's file system
			larger.VolumeContentSource = fromSnapshot(snapshot)
			restored := r.volume(larger)
			if again := r.volume(larger); again != restored {
				t.Errorf("repeated restore is %s, was %s", again, restored)
			}
			r.must("stage restored", r.stage(restored, "rst", c))
			r.must("publish restored", r.publish(restored, "rst", "rtg", c, false))
			r.read("rtg", "as it was")
			if got, was := r.total(restored, "rtg"), r.total(volume, "tg"); got < was+(48<<20) {
				t.Errorf("file system restored to a larger volume has %d bytes, the source's has %d", got, was)
			}
			q := request("clone", least, c)
			q.VolumeContentSource = fromVolume(volume)
			clone := r.volume(q)
			r.must("stage clone", r.stage(clone, "cst", c))
			r.read("cst", "as it is")
			r.must("unstage clone", r.unstage(clone, "cst"))
			r.must("stage clone again", r.stage(clone, "cst", c))
			r.write("cst", "the clone's own")
			r.write("rtg", "the restored one's own")
			r.read("tg", "as it is")

			was := r.total(volume, "tg")
			e, err := r.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
				VolumeId: volume, CapacityRange: &csi.CapacityRange{RequiredBytes: (least + 64) << 20},
			})
			r.must("expand", err)
			if e.GetCapacityBytes() != (least+64)<<20 || !e.GetNodeExpansionRequired() {
				t.Errorf("expand: %v", e)
			}
			n, err := r.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{
				VolumeId: volume, VolumePath: r.path("tg"), StagingTargetPath: r.path("st"),
				CapacityRange: &csi.CapacityRange{RequiredBytes: (least + 64) << 20},
			})
			r.must("node expand", err)
			if got := r.total(volume, "tg"); n.GetCapacityBytes() != (least+64)<<20 || got < was+(48<<20) {
				t.Errorf("node expand: %v, file system of %d bytes, was %d", n, got, was)
			}
			r.read("tg", "as it is")
			s, err := r.GetSnapshot(t.Context(), &csi.GetSnapshotRequest{SnapshotId: snapshot})
			if err != nil || s.GetSnapshot().GetSizeBytes() != least<<20 || !s.GetSnapshot().GetReadyToUse() {
				t.Errorf("snapshot after the expansion: %v, %v", s, err)
			}

			for _, v := range []struct{ id, target, staging string }{{volume, "tg", "st"}, {restored, "rtg", "rst"}, {clone, "none", "cst"}} {
				r.want("delete while staged", r.remove(v.id), codes.FailedPrecondition)
				r.must("unpublish", r.unpublish(v.id, v.target))
				r.must("unstage", r.unstage(v.id, v.staging))
				r.must("delete", r.remove(v.id))
			}
			// The snapshot stays after its volume is deleted.
			q = request("late", least, c)
			q.VolumeContentSource = fromSnapshot(snapshot)
			late := r.volume(q)
			r.must("stage late", r.stage(late, "lst", c))
			r.read("lst", "as it was")
			r.must("unstage late", r.unstage(late, "lst"))
			r.must("delete late", r.remove(late))
			_, err = r.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: snapshot})
			r.must("delete snapshot", err)
			for _, name := range []string{"st", "rst", "cst", "lst"} {
				if entries, err := os.ReadDir(r.path(name)); err != nil || len(entries) != 0 {
					t.Errorf("left in the staging directory %s: %v, %v", name, entries, err)
				}
			}
		})
	}
}

// A block volume can be written, snapshotted, restored larger and expanded in
// use. Its device is at the target path.
func TestDriver_blockVolume(t *testing.T) {
	r := newRig(t)
	c := block(writer)
	volume := r.volume(request("origin", 32, c))
	r.must("stage", r.stage(volume, "st", c))
	r.must("publish", r.publish(volume, "st", "tg", c, false))
	put := func(at, content string) {
		t.Helper()
		f, err := os.OpenFile(r.path(at), os.O_WRONLY|os.O_SYNC, 0)
		r.must("open", err)
		defer f.Close()
		_, err = f.WriteAt([]byte(content), 20<<20)
		r.must("write", err)
	}
	get := func(at, want string) {
		t.Helper()
		f, err := os.Open(r.path(at))
		r.must("open", err)
		defer f.Close()
		got := make([]byte, len(want))
		if _, err := f.ReadAt(got, 20<<20); err != nil || string(got) != want {
			t.Errorf("at %s: %q, %v; want %q", at, got, err, want)
		}
	}
	get("tg", "\x00\x00\x00\x00")
	put("tg", "as it was")
	snapshot := r.snapshot("snapshot", volume)
	put("tg", "as it is!")

	q := request("restored", 64, c)
	q.VolumeContentSource = fromSnapshot(snapshot)
	restored := r.volume(q)
	r.must("stage restored", r.stage(restored, "rst", c))
	r.must("publish restored", r.publish(restored, "rst", "deep/down/rtg", c, false))
	get("deep/down/rtg", "as it was")
	if got := r.total(restored, "deep/down/rtg"); got != 64<<20 {
		t.Errorf("restored block volume has %d bytes", got)
	}
	e, err := r.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
		VolumeId: volume, CapacityRange: &csi.CapacityRange{RequiredBytes: 48 << 20},
	})
	if err != nil || e.GetCapacityBytes() != 48<<20 || e.GetNodeExpansionRequired() {
		t.Errorf("expand: %v, %v", e, err)
	}
	if got := r.total(volume, "tg"); got != 48<<20 {
		t.Errorf("expanded block volume has %d bytes", got)
	}
	get("tg", "as it is!")
	for _, v := range []struct{ id, target, staging string }{{volume, "tg", "st"}, {restored, "deep/down/rtg", "rst"}} {
		r.want("unstage while published", r.unstage(v.id, v.staging), codes.FailedPrecondition)
		r.must("unpublish", r.unpublish(v.id, v.target))
		r.want("delete while staged", r.remove(v.id), codes.FailedPrecondition)
		r.must("unstage", r.unstage(v.id, v.staging))
		r.must("delete", r.remove(v.id))
	}
}

// Volumes stay in use while the driver restarts, and the new process takes them
// over.
func TestDriver_restart(t *testing.T) {
	r := newRig(t)
	fs, blk := mount(singleWriter, "ext4"), block(writer)
	volume := r.volume(request("v", 64, fs))
	raw := r.volume(request("raw", 32, blk))
	r.must("stage", r.stage(volume, "st", fs))
	r.must("publish", r.publish(volume, "st", "tg", fs, false))
	r.must("stage raw", r.stage(raw, "rst", blk))
	r.must("publish raw", r.publish(raw, "rst", "rtg", blk, false))
	r.write("tg", "before")
	r.stop()
	r.write("tg", "between")
	r.start()
	r.read("tg", "between")
	r.must("stage again", r.stage(volume, "st", fs))
	r.must("publish again", r.publish(volume, "st", "tg", fs, false))
	r.must("stage raw again", r.stage(raw, "rst", blk))
	r.want("publish elsewhere", r.publish(volume, "st", "tg2", fs, false), codes.FailedPrecondition)
	r.want("delete", r.remove(volume), codes.FailedPrecondition)
	r.want("delete raw", r.remove(raw), codes.FailedPrecondition)
	snapshot := r.snapshot("snapshot", volume)
	if snapshot == "" {
		t.Error("no snapshot id")
	}
	r.must("unpublish", r.unpublish(volume, "tg"))
	r.must("unpublish raw", r.unpublish(raw, "rtg"))
	r.must("unstage", r.unstage(volume, "st"))
	r.must("unstage raw", r.unstage(raw, "rst"))
	r.must("delete", r.remove(volume))
	r.must("delete raw", r.remove(raw))
}
