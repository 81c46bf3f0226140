//go:build kernel

package driver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

const acknowledged = 20 // number of files whose fsync has returned

// fsynced creates files at a mount and waits for their fsync.
func (r *rig) fsynced(at, prefix string) {
	r.t.Helper()
	for i := range acknowledged {
		dir := filepath.Join(r.path(at), fmt.Sprint(prefix, i))
		r.must("mkdir", os.Mkdir(dir, 0o700))
		f, err := os.Create(filepath.Join(dir, "file"))
		r.must("create", err)
		_, err = f.Write(make([]byte, 5000))
		r.must("write", errors.Join(err, f.Sync(), f.Close()))
	}
}

// wantFiles fails the test if not all files of fsynced are at a mount.
func (r *rig) wantFiles(what, at, prefix string) {
	r.t.Helper()
	found, err := filepath.Glob(filepath.Join(r.path(at), prefix+"*", "file"))
	if err != nil || len(found) != acknowledged {
		r.t.Errorf("%s shows %d files, %v; %d were synchronised", what, len(found), err, acknowledged)
	}
}

// powerCut makes the device of a mounted volume fail, as a power cut does, unmounts
// the volume, and restores the device.
func (r *rig) powerCut(volume, at string) {
	r.t.Helper()
	name := filepath.Base(r.device(volume))
	table := r.tool("dmsetup", "table", name)
	var end int
	_, err := fmt.Sscanf(strings.TrimSpace(r.tool("blockdev", "--getsz", "/dev/mapper/"+name)), "%d", &end)
	r.must("size", err)
	r.tool("dmsetup", "suspend", "--nolockfs", name)
	r.tool("dmsetup", "reload", name, "--table", fmt.Sprintf("0 %d error", end))
	r.tool("dmsetup", "resume", name)
	r.must("unmount", filesystem.Unmount(r.path(at)))
	r.tool("dmsetup", "suspend", "--nolockfs", name)
	r.tool("dmsetup", "reload", name, "--table", strings.TrimSpace(table))
	r.tool("dmsetup", "resume", name)
}

// reader creates a read-only volume, stages it and checks its files. takes is
// whether the volume takes room in the pool.
func (r *rig) reader(name string, q *csi.CreateVolumeRequest, c *csi.VolumeCapability, prefix string) (id string, takes bool) {
	r.t.Helper()
	id = r.volume(q)
	takes = strings.Contains(r.tool("lvs", "--noheadings", "-o", "name", "vgdriver"), "fork-"+q.GetName())
	for round := range 2 { // an unstage loses nothing
		at := fmt.Sprint(name, round)
		r.must("stage "+name, r.stage(id, at, c))
		r.wantFiles(name, at, prefix)
		if err := os.WriteFile(filepath.Join(r.path(at), "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
			r.t.Errorf("write at %s: %v", at, err)
		}
		r.readOnlyDevice(id)
		r.must("unstage "+name, r.unstage(id, at))
	}
	return id, takes
}

// Read-only volumes show everything that was acknowledged before the snapshot,
// whatever happened to the source. Only a volume whose source was unclean takes
// room.
func TestRecoverReader_powerCut(t *testing.T) {
	for _, fs := range []string{filesystem.Ext4, filesystem.XFS, filesystem.Btrfs} {
		t.Run(fs, func(t *testing.T) {
			r := newRig(t)
			c, readers := mount(writer, fs), mount(manyReaders, fs)
			mib := max(64, int64(filesystem.MinimumSize(fs))>>20)
			volume := r.volume(request("origin", mib, c))
			r.must("stage", r.stage(volume, "st", c))
			r.fsynced("st", "a")
			mounted := r.snapshot("mounted", volume)
			r.fsynced("st", "b")
			r.powerCut(volume, "st")
			dirty := r.snapshot("dirty", volume)

			unclean, takes := r.reader("dirty", from("dirty-reader", mib, readers, fromSnapshot(dirty)), readers, "b")
			if !takes {
				t.Error("the reader of an unclean snapshot takes no room: the test proves nothing")
			}
			cloned, _ := r.reader("cloned", from("clone-reader", mib, readers, fromVolume(volume)), readers, "b")
			scratch := from("scratch", mib, c, fromSnapshot(dirty))
			scratch.Parameters = map[string]string{"transient": "true"}
			transient := r.volume(scratch)
			skips := mount(reader, fs)
			skips.GetMount().MountFlags = []string{"noatime," + map[string]string{filesystem.Ext4: "noload", filesystem.XFS: "norecovery", filesystem.Btrfs: "rescue=nologreplay"}[fs]}
			r.want("stage the transient without a replay", r.stage(transient, "tr-ro", skips), codes.FailedPrecondition)
			only := mount(reader, fs) // the mount is read-only, the device is not
			r.must("stage the transient to be read", r.stage(transient, "tr-ro", only))
			r.wantFiles("the transient that is read", "tr-ro", "b")
			r.must("unstage the transient", r.unstage(transient, "tr-ro"))
			r.must("stage the transient", r.stage(transient, "tr", c))
			r.wantFiles("the transient", "tr", "b")
			r.must("unstage the transient", r.unstage(transient, "tr"))

			// Both at the same time, and after a restart of the driver.
			r.must("stage", r.stage(unclean, "a", readers))
			r.must("stage", r.stage(cloned, "b", readers))
			r.stop()
			r.start()
			r.must("stage again", r.stage(unclean, "a", readers))
			r.wantFiles("after a restart", "a", "b")
			r.must("unstage", r.unstage(unclean, "a"))
			r.must("unstage", r.unstage(cloned, "b"))
			r.tool("vgck", "vgdriver")

			// A mount of the source replays its journal, so the source is clean then.
			r.must("stage", r.stage(volume, "st", c))
			r.wantFiles("the source", "st", "b")
			r.must("unstage", r.unstage(volume, "st"))
			clean := r.snapshot("clean", volume)
			ids := []string{unclean, cloned, transient}
			for name, snapshot := range map[string]string{"mounted": mounted, "clean": clean} {
				id, takes := r.reader(name, from(name+"-reader", mib, readers, fromSnapshot(snapshot)), readers, "a")
				if takes && (fs != filesystem.Btrfs || name == "clean") { // a suspend does not freeze btrfs
					t.Errorf("the reader of the snapshot %s takes room", name)
				}
				ids = append(ids, id)
			}

			// Without room the claim waits, and the error has the reason.
			filler := r.fillPool()
			_, err := r.CreateVolume(t.Context(), from("no-room", mib, readers, fromSnapshot(dirty)))
			r.want("a reader that needs room in a full pool", err, codes.ResourceExhausted)
			r.must("delete", r.remove(filler))
			for _, id := range ids {
				r.must("delete", r.remove(id))
			}
		})
	}
}

// Read-only volumes show everything that was acknowledged before a file system
// shut itself down, although the snapshot cannot freeze it.
func TestRecoverReader_shutDown(t *testing.T) {
	for _, fs := range []string{filesystem.Ext4, filesystem.XFS} {
		t.Run(fs, func(t *testing.T) {
			r := newRig(t)
			c, readers := mount(writer, fs), mount(manyReaders, fs)
			mib := max(64, int64(filesystem.MinimumSize(fs))>>20)
			volume := r.volume(request("origin", mib, c))
			r.must("stage", r.stage(volume, "st", c))
			r.fsynced("st", "b")
			const shutdown, logflush = 0x8004587d, 1
			f, err := os.Open(r.path("st"))
			r.must("open", err)
			r.must("shut down", unix.IoctlSetPointerInt(int(f.Fd()), shutdown, logflush))
			f.Close()
			// A snapshot while it is mounted, if the kernel can suspend it, and one afterwards.
			if s, err := r.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "mounted", SourceVolumeId: volume}); err == nil {
				r.reader("mounted", from("mounted-reader", mib, readers, fromSnapshot(s.GetSnapshot().GetSnapshotId())), readers, "b")
			} else {
				t.Logf("cut while it is shut down: %v", err)
			}
			r.must("unmount", filesystem.Unmount(r.path("st")))
			r.reader("unmounted", from("unmounted-reader", mib, readers, fromSnapshot(r.snapshot("unmounted", volume))), readers, "b")
		})
	}
}

// An unclean snapshot that LVM2 took is shown completely after its adoption,
// and an unclean read-only logical volume is refused.
func TestRecoverReader_lvm2Snapshot(t *testing.T) {
	for _, fs := range []string{filesystem.Ext4, filesystem.XFS, filesystem.Btrfs} {
		t.Run(fs, func(t *testing.T) {
			r := newRig(t)
			c, readers := mount(writer, fs), mount(manyReaders, fs)
			mib := max(64, int64(filesystem.MinimumSize(fs))>>20)
			volume := r.volume(request("origin", mib, c))
			r.must("stage", r.stage(volume, "st", c))
			r.fsynced("st", "b")
			r.powerCut(volume, "st")
			r.must("unstage", r.unstage(volume, "st"))
			r.tool("lvchange", "-qq", "-ay", "vgdriver/origin")
			r.tool("lvcreate", "-qq", "-y", "-s", "-L", "32m", "-n", "theirs", "vgdriver/origin")
			r.tool("lvcreate", "-qq", "-y", "-Wn", "-Zn", "-L", fmt.Sprintf("%dm", mib), "-n", "static", "vgdriver")
			r.tool("dd", "if=/dev/vgdriver/theirs", "of=/dev/vgdriver/static", "bs=1M", "oflag=direct")
			r.tool("lvchange", "-qq", "-pr", "vgdriver/static")
			static := "v1:node-1:fast:static"
			r.must("allow", r.allow("static"))
			err := r.stage(static, "static", mount(reader, fs))
			r.want("stage a read-only logical volume that is not clean", err, codes.FailedPrecondition)
			r.tool("lvchange", "-qq", "-prw", "vgdriver/static")
			r.must("stage it writable", r.stage(static, "static", c))
			r.wantFiles("static", "static", "b")
			r.must("unstage", r.unstage(static, "static"))
			r.tool("lvchange", "-qq", "-pr", "vgdriver/static")
			r.must("stage it read-only", r.stage(static, "static", mount(reader, fs)))
			r.wantFiles("static", "static", "b")
			r.must("unstage", r.unstage(static, "static"))
			r.tool("lvchange", "-qq", "-an", "vgdriver/origin", "vgdriver/static")

			r.must("adopt", pool.Adopt(t.Context(), r.configs[0], pool.Options{}, pool.Adoption{LV: "origin", Mode: pool.Filesystem, FSType: fs}))
			var list *csi.ListSnapshotsResponse
			for end := time.Now().Add(20 * time.Second); len(list.GetEntries()) == 0; time.Sleep(100 * time.Millisecond) {
				if list, err = r.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{}); err != nil || time.Now().After(end) {
					t.Fatalf("the driver does not see the adopted snapshot: %v", err)
				}
			}
			adopted := list.GetEntries()[0].GetSnapshot().GetSnapshotId()
			r.reader("adopted", from("adopted-reader", mib, readers, fromSnapshot(adopted)), readers, "b")
		})
	}
}
