//go:build kernel

package driver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// active reports whether a volume has a device.
func (r *rig) active(volume string) bool {
	r.t.Helper()
	i, _ := handle.Parse(volume)
	list := r.tool("dmsetup", "ls")
	return strings.Contains(list, "vgdriver-"+strings.ReplaceAll(i.LV, "-", "--")+"\t")
}

// A volume that is staged at two paths is unstaged at each of them, and its
// device goes with the last. A publication from one path does not block the
// other path.
func TestUnstage_twoPaths(t *testing.T) {
	for name, c := range map[string]*csi.VolumeCapability{
		"ext4": mount(writer, filesystem.Ext4), "xfs": mount(writer, filesystem.XFS), "btrfs": mount(writer, filesystem.Btrfs), "block": block(writer),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			volume := r.volume(request("v", 320, c))
			for range 2 {
				r.must("stage", r.stage(volume, "a", c))
				r.must("stage at another path", r.stage(volume, "b", c))
			}
			r.must("publish", r.publish(volume, "b", "tg", c, false))
			if c.GetBlock() == nil { // the device node of a block volume is the same at both paths
				r.want("unstage what is published", r.unstage(volume, "b"), codes.FailedPrecondition)
			}
			for range 2 { // the first may have been interrupted
				r.must("unstage the other path", r.unstage(volume, "a"))
			}
			r.must("unstage a path that it never had", r.unstage(volume, "never"))
			r.want("unstage what is published", r.unstage(volume, "b"), codes.FailedPrecondition)
			r.must("unpublish", r.unpublish(volume, "tg"))
			r.must("stage at the other path again", r.stage(volume, "a", c))
			r.must("unstage", r.unstage(volume, "b"))
			if !r.active(volume) {
				t.Error("the device is gone, and the volume staged")
			}
			// As after a call that died between the unmount and the removal of the device.
			at := r.path("a")
			if c.GetBlock() != nil {
				at = filepath.Join(at, volume)
			}
			r.must("unmount", filesystem.Unmount(at))
			for range 2 {
				r.must("unstage the last path", r.unstage(volume, "a"))
			}
			if r.active(volume) {
				t.Error("the device is there, and the volume unstaged")
			}
			r.must("delete", r.remove(volume))
		})
	}
}

// All mounts on top of each other at the staging path are unmounted.
func TestUnstage_stackedMounts(t *testing.T) {
	r := newRig(t)
	c := mount(writer, filesystem.Ext4)
	volume := r.volume(request("v", 32, c))
	r.must("stage", r.stage(volume, "st", c))
	r.must("mount it once more", unix.Mount(r.path("st"), r.path("st"), "", unix.MS_BIND, ""))
	r.must("unstage", r.unstage(volume, "st"))
	if m, err := filesystem.MountAt(r.path("st")); m != nil || err != nil || r.active(volume) {
		t.Errorf("the volume is unstaged, and mounted: %v, %v", m, err)
	}
	r.must("delete", r.remove(volume))
}

// A single-writer volume is published at one target, even if it is staged at
// two paths.
func TestPublish_singleWriterTwoPaths(t *testing.T) {
	for name, c := range map[string]*csi.VolumeCapability{"ext4": mount(singleWriter, filesystem.Ext4), "block": block(singleWriter)} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			volume := r.volume(request("v", 32, c))
			r.must("stage", r.stage(volume, "a", c))
			r.must("stage at another path", r.stage(volume, "b", c))
			for range 2 {
				r.must("publish", r.publish(volume, "a", "tg", c, false))
			}
			r.want("publish a second time", r.publish(volume, "a", "tg2", c, false), codes.FailedPrecondition)
			r.want("publish a second time from the other path", r.publish(volume, "b", "tg2", c, false), codes.FailedPrecondition)
			r.must("unpublish", r.unpublish(volume, "tg"))
			r.must("publish from the other path", r.publish(volume, "b", "tg2", c, false))
			r.must("unpublish", r.unpublish(volume, "tg2"))
			r.must("unstage", r.unstage(volume, "a"))
			r.must("unstage", r.unstage(volume, "b"))
		})
	}
}

// A frozen file system is thawed before its last unmount, which would otherwise
// leave its device in use.
func TestUnstage_frozenFilesystem(t *testing.T) {
	const freeze = 0xc0045877 // FIFREEZE
	for _, fs := range []string{filesystem.Ext4, filesystem.XFS, filesystem.Btrfs} {
		t.Run(fs, func(t *testing.T) {
			r := newRig(t)
			c := mount(writer, fs)
			volume := r.volume(request("v", 320, c))
			r.must("stage", r.stage(volume, "st", c))
			r.must("publish", r.publish(volume, "st", "tg", c, false))
			r.write("tg", "content")
			f, err := os.Open(r.path("tg"))
			r.must("open", err)
			r.must("freeze", unix.IoctlSetInt(int(f.Fd()), freeze, 0))
			r.must("close", f.Close())
			r.must("unpublish", r.unpublish(volume, "tg"))
			r.must("unstage", r.unstage(volume, "st"))
			if r.active(volume) {
				t.Error("the device is there still")
			}
			r.must("stage", r.stage(volume, "st", c))
			r.read("st", "content")
			r.write("st", "more")
			r.must("unstage", r.unstage(volume, "st"))
		})
	}
}
