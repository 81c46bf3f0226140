//go:build kernel

package driver

import (
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// wantWritable checks whether a program in a pod can write to a published block
// device.
func (r *rig) wantWritable(what, at string, can bool) {
	r.t.Helper()
	for _, flag := range []string{"oflag=direct", "conv=fsync,notrunc"} {
		out, err := exec.Command("dd", "if=/dev/zero", "of="+r.path(at), "bs=64k", "count=1", flag).CombinedOutput()
		if (err == nil) != can {
			r.t.Errorf("%s: dd %s to %s: %v, want %v\n%s", what, flag, at, err, can, out)
		}
	}
	fd, err := unix.Open(r.path(at), unix.O_RDWR, 0)
	if err != nil && !can {
		return
	}
	r.must("open", err)
	defer unix.Close(fd)
	if b, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); (err == nil) != can {
		r.t.Errorf("%s: mapping %s to write: %v, want %v", what, at, err, can)
	} else if err == nil {
		r.must("unmap", unix.Munmap(b))
	}
	zero := [2]uint64{0, 65536}
	if err := unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, int64(zero[0]), int64(zero[1])); (err == nil) != can {
		r.t.Errorf("%s: zeroing %s: %v, want %v", what, at, err, can)
	}
}

// A block device that only readers have published cannot be written, by any
// kind of write.
func TestProtect_readersOnly(t *testing.T) {
	r := newRig(t)
	readers, writers := block(reader), block(multiWriter)
	volume := r.volume(request("v", 32, writers))
	r.must("stage", r.stage(volume, "st", writers))
	r.wantWritable("staged", "st/"+volume, true)
	r.must("publish read-only", r.publish(volume, "st", "ro", writers, true))
	r.wantWritable("published read-only", "ro", false)
	for _, change := range []func(){
		func() { r.snapshot("s1", volume) },
		func() { r.snapshot("s2", volume) },
		func() { r.must("expand", r.expand(volume, 64)) },
		func() { r.volume(from("restored", 0, writers, fromVolume(volume))); r.hydrated() },
		func() { r.stop(); r.start() },
	} {
		change()
		r.wantWritable("published read-only", "ro", false)
	}
	if found, err := pool.Verify(t.Context(), r.configs[0], pool.Options{}); err != nil || len(found.Findings) > 0 {
		t.Errorf("check: %v, %v", found, err)
	}
	r.must("publish to a writer", r.publish(volume, "st", "rw", writers, false))
	r.wantWritable("published to a writer", "rw", true)
	r.must("publish read-only beside it", r.publish(volume, "st", "ro2", writers, true))
	r.wantWritable("published to a writer", "rw", true)
	r.must("unpublish a reader", r.unpublish(volume, "ro"))
	r.wantWritable("published to a writer", "rw", true)
	r.must("unpublish the writer", r.unpublish(volume, "rw"))
	r.wantWritable("published read-only", "ro2", false)
	r.must("unpublish", r.unpublish(volume, "ro2"))
	r.wantWritable("staged", "st/"+volume, true)
	r.must("unstage", r.unstage(volume, "st"))

	r.must("stage for a reader", r.stage(volume, "st", readers))
	r.must("publish to a reader", r.publish(volume, "st", "ro", readers, false))
	r.wantWritable("published to a reader", "ro", false)
	r.must("unpublish", r.unpublish(volume, "ro"))
	r.must("unstage", r.unstage(volume, "st"))
	r.must("stage for a writer", r.stage(volume, "st", writers))
	r.must("publish to a writer", r.publish(volume, "st", "rw", writers, false))
	r.wantWritable("published to a writer", "rw", true)
	r.must("unpublish", r.unpublish(volume, "rw"))
	r.must("unstage", r.unstage(volume, "st"))
}

// The next call repairs the protection after a call that died between its mount
// and the change of the device.
func TestProtect_interrupted(t *testing.T) {
	r := newRig(t)
	c := block(multiWriter)
	volume := r.volume(request("v", 32, c))
	r.must("stage", r.stage(volume, "st", c))
	r.must("publish", r.publish(volume, "st", "rw", c, false))
	r.must("publish read-only", r.publish(volume, "st", "ro", c, true))
	r.must("unmount", unix.Unmount(r.path("rw"), 0))
	r.wantWritable("nobody has looked", "ro", true)
	r.must("unpublish", r.unpublish(volume, "rw"))
	r.wantWritable("the writer is gone", "ro", false)
	r.tool("blockdev", "--setrw", r.device(volume)) // as a call leaves it that died before it published a writer
	other := r.volume(request("other", 32, c))
	r.must("stage another one", r.stage(other, "hidden", c))
	r.must("hide where it is staged", unix.Mount("none", r.path("hidden"), "tmpfs", 0, ""))
	r.stop()
	r.start()
	_, err := r.Probe(t.Context(), &csi.ProbeRequest{}) // Serve protects before it answers
	r.must("probe", err)
	r.wantWritable("a new process, another volume fails", "ro", false)
	r.must("show it", unix.Unmount(r.path("hidden"), 0))
	r.must("unstage it", r.unstage(other, "hidden"))
	r.must("unpublish", r.unpublish(volume, "ro"))
	r.must("unstage", r.unstage(volume, "st"))
	if out := strings.TrimSpace(r.tool("blockdev", "--getro", r.device(volume))); out != "0" {
		t.Errorf("the device is read-only: %s", out)
	}
}
