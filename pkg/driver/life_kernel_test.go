//go:build kernel

package driver

import (
	"os"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
)

func (r *rig) total(volume, at string) int64 {
	r.t.Helper()
	s, err := r.NodeGetVolumeStats(r.t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: volume, VolumePath: r.path(at)})
	r.must("stats", err)
	return s.GetUsage()[0].GetTotal()
}

// The life of a volume with a file system: written, snapshot, restored larger
// and cloned beside itself, expanded in use under its snapshot.
func TestFilesystemLife(t *testing.T) {
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

			larger := request("restored", least+64, mount(writer, "")) // the file system is the source's
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
			// The snapshot outlives its volume.
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

// The same for a raw block volume; its device is at the target path.
func TestBlockLife(t *testing.T) {
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

// Nothing that may have been used is formatted, whatever it looks like.
func TestFormattedOnce(t *testing.T) {
	r := newRig(t)
	c := mount(writer, "ext4")
	// Wipe all extents: where their content is unknown, staging would wipe what
	// this test writes.
	capacity, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{})
	r.must("capacity", err)
	r.must("delete", r.remove(r.volume(request("all", capacity.GetMaximumVolumeSize().GetValue()>>20, block(writer)))))
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		now, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{})
		r.must("capacity", err)
		if now.GetAvailableCapacity() == capacity.GetAvailableCapacity() {
			break
		}
		if time.Since(begin) > time.Minute {
			t.Fatalf("not wiped: %v", now)
		}
	}
	volume := r.volume(request("v", 64, c))

	// A stranger's content on a volume that was never formatted.
	mbr := make([]byte, 512)
	mbr[446+4], mbr[446+8], mbr[446+13] = 0x83, 8, 16
	mbr[510], mbr[511] = 0x55, 0xaa
	put := func(data []byte) {
		t.Helper()
		f, err := os.OpenFile(r.device(volume), os.O_WRONLY|os.O_SYNC, 0)
		r.must("open", err)
		defer f.Close()
		_, err = f.Write(data)
		r.must("write", err)
	}
	put(mbr)
	r.want("stage on a partition table", r.stage(volume, "st", c), codes.FailedPrecondition)
	put(make([]byte, 512))
	// What a mkfs left whose call was cut off before it was recorded.
	r.must("format", filesystem.Format(t.Context(), r.device(volume), filesystem.Ext4))
	r.must("stage", r.stage(volume, "st", c))
	r.write("st", "content")
	r.must("unstage", r.unstage(volume, "st"))

	put(make([]byte, 1<<20))
	r.want("stage what lost its superblock", r.stage(volume, "st", c), codes.FailedPrecondition)
	f, err := os.Open(r.device(volume))
	r.must("open", err)
	head := make([]byte, 1<<20)
	_, err = f.Read(head)
	f.Close()
	r.must("read", err)
	for _, b := range head {
		if b != 0 {
			t.Fatal("a volume that had been formatted was written to")
		}
	}
	// A copy of a block volume is never formatted either.
	raw := r.volume(request("raw", 64, block(writer)))
	q := request("copy", 64, c)
	q.VolumeContentSource = fromVolume(raw)
	q.Parameters = map[string]string{callmeta.ParameterModeChange: "true"}
	r.want("stage a copy of an empty block volume", r.stage(r.volume(q), "cst", c), codes.FailedPrecondition)
}

// The driver restarts while volumes are in use: they stay, and the new one
// takes them over.
func TestRestart(t *testing.T) {
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

func TestMountFlags(t *testing.T) {
	r := newRig(t)
	c := mount(writer, "ext4")
	volume := r.volume(request("v", 64, c))
	for _, flags := range [][]string{{"noatime", "noexec", "data=ordered"}, {"ro"}} {
		c.GetMount().MountFlags = flags
		for range 2 {
			r.must("stage", r.stage(volume, "st", c))
			r.must("publish", r.publish(volume, "st", "tg", c, false))
		}
		for _, at := range []string{"st", "tg"} {
			m, err := filesystem.MountAt(r.path(at))
			r.must("mount at "+at, err)
			for _, f := range flags[:min(2, len(flags))] {
				if !filesystem.HasOption(m, f) {
					t.Errorf("%s lacks %s: %s", at, f, m.Options)
				}
			}
		}
		r.must("unpublish", r.unpublish(volume, "tg"))
		r.must("unstage", r.unstage(volume, "st"))
	}
	c.GetMount().MountFlags = []string{"no-such-option"}
	r.want("stage with an unknown option", r.stage(volume, "st", c), codes.Internal)
	r.must("unstage", r.unstage(volume, "st"))
	r.must("delete", r.remove(volume))
}
