//go:build kernel

package driver

import (
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
)

// copyDevice copies the content of a device or file to another device.
func (r *rig) copyDevice(from, to string) {
	r.t.Helper()
	in, err := os.Open(from)
	r.must("open", err)
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY, 0)
	r.must("open", err)
	defer out.Close()
	_, err = io.Copy(out, in)
	r.must("copy", err)
	r.must("sync", out.Sync())
}

func (r *rig) sum(path string) [sha256.Size]byte {
	r.t.Helper()
	f, err := os.Open(path)
	r.must("open", err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	r.must("read", err)
	return [sha256.Size]byte(h.Sum(nil))
}

// publishRaw publishes a volume as a block device and returns its target path.
func (r *rig) publishRaw(volume string) string {
	r.t.Helper()
	r.stageWiped(volume, "raw")
	r.must("publish raw", r.publish(volume, "raw", "raw-target", block(writer), false))
	return r.path("raw-target")
}

func (r *rig) unpublishRaw(volume string) {
	r.t.Helper()
	r.must("unpublish raw", r.unpublish(volume, "raw-target"))
	r.must("unstage raw", r.unstage(volume, "raw"))
}

// A volume that Velero's block data mover wrote as a raw device can be mounted,
// even beside its source. The mover reads a block copy of a file system volume,
// writes the bytes to a block volume, and has the volume mounted by the same
// handle. The pool is new and lies on used disks.
func TestActivate_blockDataMover(t *testing.T) {
	for _, fs := range []string{filesystem.Ext4, filesystem.XFS, filesystem.Btrfs} {
		t.Run(fs, func(t *testing.T) {
			r := newRig(t)
			mib := max(64, int64(filesystem.MinimumSize(fs))>>20)
			c := mount(writer, fs)
			any := mount(writer, "") // a PersistentVolume that was created from a block claim names no file system
			origin := r.volume(request("origin", mib, c))
			r.must("stage", r.stage(origin, "st", c))
			r.write("st", "saved")
			backup := r.snapshot("backup", origin)
			r.write("st", "later")

			shown := block(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)
			readers := r.volume(from("readers", mib, shown, fromSnapshot(backup)))
			r.must("stage readers", r.stage(readers, "rox", shown))
			r.must("publish readers", r.publish(readers, "rox", "rox-target", shown, true))
			volume := r.volume(request("restored", mib, block(writer)))
			r.copyDevice(r.path("rox-target"), r.publishRaw(volume))
			r.unpublishRaw(volume)
			if fs == filesystem.Ext4 { // volumes of the others are larger
				want := r.sum(r.path("rox-target"))
				for _, transient := range []string{"false", "true"} {
					q := from("writers-"+transient, mib, block(writer), fromSnapshot(backup))
					q.Parameters = map[string]string{"transient": transient}
					copied := r.volume(q)
					if r.sum(r.publishRaw(copied)) != want {
						t.Errorf("what writers see differs from what readers do, transient is %s", transient)
					}
					r.unpublishRaw(copied)
					r.must("delete", r.remove(copied))
				}
			}
			r.must("unpublish readers", r.unpublish(readers, "rox-target"))
			r.must("unstage readers", r.unstage(readers, "rox"))
			r.must("delete", r.remove(readers))

			r.must("stage as a file system", r.stage(volume, "files", any))
			r.must("publish", r.publish(volume, "files", "target", any, false))
			r.read("target", "saved")
			r.write("target", "changed")
			r.read("st", "later")
			r.must("unpublish", r.unpublish(volume, "target"))
			r.must("unstage", r.unstage(volume, "files"))
			r.must("unstage the origin", r.unstage(origin, "st"))

			r.stop() // the new process has only the record on the disk
			r.start()
			_, err := r.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
				VolumeId: volume, CapacityRange: &csi.CapacityRange{RequiredBytes: (mib + 96) << 20}, VolumeCapability: c,
			})
			r.must("expand", err)
			r.must("stage again", r.stage(volume, "files", c))
			r.read("files", "changed")
			copied := r.volume(from("copied", mib+96, c, fromSnapshot(r.snapshot("s", volume))))
			r.must("stage a restore of it", r.stage(copied, "copied", c))
			r.read("copied", "changed")
			r.must("unstage", r.unstage(copied, "copied"))
			r.must("unstage", r.unstage(volume, "files"))
			r.checkFilesystem(fs, r.device(volume))
			r.want("another type", r.stage(volume, "files", mount(writer, map[bool]string{true: filesystem.XFS, false: filesystem.Ext4}[fs == filesystem.Ext4])), codes.FailedPrecondition)
		})
	}
}

// A volume that was published as a block device is never formatted: whether it
// has content or not, and even if it was created for a file system. A volume
// that nobody has used is formatted.
func TestActivate_usedBlockDevice(t *testing.T) {
	r := newRig(t)
	blk, fs := block(writer), mount(writer, filesystem.Ext4)
	head := func(path string) []byte {
		t.Helper()
		f, err := os.Open(path)
		r.must("open", err)
		defer f.Close()
		b := make([]byte, 4<<20)
		_, err = io.ReadFull(f, b)
		r.must("read", err)
		return b
	}
	for _, x := range []struct {
		name    string
		made    *csi.VolumeCapability
		content []byte
	}{
		{"garbage", blk, bytes.Repeat([]byte("tenant's own "), 1000)},
		{"nothing", blk, nil},
		{"files-with-nothing", fs, nil},
	} {
		volume := r.volume(request(x.name, 64, x.made))
		path := r.publishRaw(volume)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		r.must("open", err)
		_, err = f.WriteAt(x.content, 0)
		r.must("write", err)
		r.must("close", f.Close())
		before := head(path)
		r.unpublishRaw(volume)
		for _, c := range []*csi.VolumeCapability{fs, mount(writer, "")} {
			r.want(x.name+" as a file system", r.stage(volume, "files", c), codes.FailedPrecondition)
			r.stop()
			r.start()
		}
		if !bytes.Equal(head(r.publishRaw(volume)), before) {
			t.Errorf("%s: its content was changed", x.name)
		}
		r.unpublishRaw(volume)
	}
	for what, c := range map[string]*csi.VolumeCapability{"ext4": fs, "any": mount(writer, "")} {
		untouched := r.volume(request("untouched-"+what, 64, blk))
		r.wantFresh(what, untouched, c)
		r.must("delete", r.remove(untouched))
	}
}

// A volume is never used in both modes at the same time, whichever mode was
// first.
func TestActivate_bothModes(t *testing.T) {
	r := newRig(t)
	blk, fs := block(writer), mount(writer, filesystem.Ext4)
	volume := r.volume(request("v", 64, blk))
	for _, c := range []*csi.VolumeCapability{blk, fs} {
		v, err := r.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{VolumeId: volume, VolumeCapabilities: []*csi.VolumeCapability{c}})
		if err != nil || v.GetConfirmed() == nil {
			t.Errorf("%v is not confirmed: %v, %v", c, v, err)
		}
	}
	path := r.publishRaw(volume)
	r.must("format", filesystem.Format(t.Context(), path, filesystem.Ext4))
	r.want("files beside raw", r.stage(volume, "files", fs), codes.FailedPrecondition)
	r.want("publish files", r.publish(volume, "raw", "target", fs, false), codes.FailedPrecondition)
	r.unpublishRaw(volume)
	r.must("stage files", r.stage(volume, "files", fs))
	r.want("raw beside files", r.stage(volume, "raw", blk), codes.FailedPrecondition)
	r.want("publish raw", r.publish(volume, "files", "target", blk, false), codes.FailedPrecondition)
	r.write("files", "content")
	r.must("unstage", r.unstage(volume, "files"))
	// Another process has the device open.
	r.device(volume)
	f, err := os.OpenFile(r.device(volume), os.O_RDONLY, 0)
	r.must("open", err)
	r.want("raw while it is open", r.stage(volume, "raw", blk), codes.FailedPrecondition)
	f.Close()
	r.publishRaw(volume)
	r.unpublishRaw(volume)
	r.must("stage files", r.stage(volume, "files", fs))
	r.read("files", "content")
	r.must("unstage", r.unstage(volume, "files"))
}
