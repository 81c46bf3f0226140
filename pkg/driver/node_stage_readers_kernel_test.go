//go:build kernel

package driver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
)

// fillPool creates a volume that takes all the room for volumes.
func (r *rig) fillPool() string {
	r.t.Helper()
	c, err := r.GetCapacity(r.t.Context(), &csi.GetCapacityRequest{})
	r.must("capacity", err)
	return r.volume(request("filler", c.GetMaximumVolumeSize().GetValue()>>20, block(writer)))
}

// refusesDuplicates reports whether the kernel cannot mount a second file system
// with the same identity: btrfs before Linux 6.7.
func refusesDuplicates(fs string) bool {
	_, err := os.Stat("/sys/fs/btrfs/features/temp_fsid")
	return fs == filesystem.Btrfs && err != nil
}

// Read-only volumes show their snapshot: several at the same time, beside their
// source while it is written, and from a full pool. Their devices and mounts
// are read-only.
func TestStage_readers(t *testing.T) {
	for _, fs := range []string{filesystem.Ext4, filesystem.XFS, filesystem.Btrfs} {
		t.Run(fs, func(t *testing.T) {
			r := newRig(t)
			c := mount(writer, fs)
			least := int64(filesystem.MinimumSize(fs)) >> 20
			volume := r.volume(request("origin", least, c))
			r.must("stage", r.stage(volume, "st", c))
			r.write("st", "content")
			snapshot := r.snapshot("snapshot", volume)
			r.write("st", "changed")
			second := r.snapshot("second", volume)
			r.write("st", "changed again")
			filler := r.fillPool()

			readers := mount(manyReaders, fs)
			q := request("larger", least+64, readers)
			q.VolumeContentSource = fromSnapshot(snapshot)
			_, err := r.CreateVolume(t.Context(), q)
			r.want("larger than the snapshot", err, codes.OutOfRange)
			type view struct{ id, at, content string }
			var views []view
			for i, from := range []string{snapshot, second, snapshot} {
				q := request(fmt.Sprint("reader", i), least, readers)
				q.VolumeContentSource = fromSnapshot(from)
				views = append(views, view{r.volume(q), fmt.Sprint("r", i), map[string]string{snapshot: "content", second: "changed"}[from]})
			}
			for _, v := range views {
				id, at := v.id, v.at
				r.want("stage for a writer", r.stage(id, at, c), codes.FailedPrecondition)
				if refusesDuplicates(fs) {
					r.want("stage beside the source", r.stage(id, at, readers), codes.FailedPrecondition)
					r.must("unstage the source", r.unstage(volume, "st"))
				}
				r.must("stage", r.stage(id, at, readers))
				if refusesDuplicates(fs) {
					r.want("stage the source beside it", r.stage(volume, "st", c), codes.FailedPrecondition)
				} else {
					r.write("st", "changed once more")
				}
				r.must("publish", r.publish(id, at, at+"tg", readers, false))
				r.must("publish again", r.publish(id, at, at+"tg2", readers, false))
				r.read(at+"tg", v.content)
				for _, dir := range []string{at + "tg", at + "tg2", at} {
					if err := os.WriteFile(filepath.Join(r.path(dir), "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
						t.Errorf("write at %s: %v", dir, err)
					}
				}
				r.readOnlyDevice(id)
				r.wantUnchangeable(id, least)
				if refusesDuplicates(fs) {
					r.closeReader(id, at)
					r.must("stage the source again", r.stage(volume, "st", c))
				}
			}
			r.must("delete the filler", r.remove(filler))
			// The snapshots and the source may be deleted.
			for _, id := range []string{snapshot, second} {
				_, err := r.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: id})
				r.must("delete a snapshot", err)
			}
			r.must("unstage the source", r.unstage(volume, "st"))
			r.must("delete the source", r.remove(volume))
			for _, v := range views {
				id, at := v.id, v.at
				if refusesDuplicates(fs) {
					r.must("stage without the source", r.stage(id, at, readers))
					r.read(at, v.content)
					r.must("unstage", r.unstage(id, at))
				} else {
					r.read(at+"tg", v.content)
					r.closeReader(id, at)
				}
				r.must("delete", r.remove(id))
			}
		})
	}
}

func (r *rig) closeReader(id, at string) {
	r.t.Helper()
	for _, target := range []string{at + "tg", at + "tg2"} {
		r.must("unpublish", r.unpublish(id, target))
	}
	r.must("unstage", r.unstage(id, at))
}

// readOnlyDevice fails the test if the volume's device can be written.
func (r *rig) readOnlyDevice(id string) {
	r.t.Helper()
	f, err := os.OpenFile(r.device(id), os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 4096)); err == nil {
		r.t.Error("the device can be written")
	}
}

// wantUnchangeable fails the test if a volume that shows a snapshot can be
// snapshotted, cloned or expanded.
func (r *rig) wantUnchangeable(id string, mib int64) {
	r.t.Helper()
	ctx := r.t.Context()
	_, err := r.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "of " + id, SourceVolumeId: id})
	r.want("snapshot of it", err, codes.FailedPrecondition)
	q := request("clone", mib, mount(writer, ""))
	q.VolumeContentSource = fromVolume(id)
	_, err = r.CreateVolume(ctx, q)
	r.want("clone of it", err, codes.FailedPrecondition)
	for more, code := range map[int64]codes.Code{0: codes.OK, 64: codes.FailedPrecondition} {
		_, err = r.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
			VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: (mib + more) << 20},
		})
		r.want("expansion of it", err, code)
	}
}
