//go:build kernel

package driver

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// failingDisk is a disk that fails between calls of fail and mend.
type failingDisk struct {
	r    *rig
	good string // the table while the disk works
}

func newFailingDisk(t *testing.T) *failingDisk {
	d := &failingDisk{r: &rig{t: t}, good: "0 2000000 linear " + scratch(t)[0] + " 8192"}
	d.r.tool("dmsetup", "create", "faildisk", "--table", d.good)
	t.Cleanup(func() { d.r.tool("dmsetup", "remove", "--retry", "faildisk") })
	return d
}

func (d *failingDisk) path() string { return "/dev/mapper/faildisk" }

func (d *failingDisk) put(table string) {
	d.r.t.Helper()
	d.r.tool("dmsetup", "suspend", "--noflush", "--nolockfs", "faildisk")
	d.r.tool("dmsetup", "load", "faildisk", "--table", table)
	d.r.tool("dmsetup", "resume", "faildisk")
}

func (d *failingDisk) fail() { d.put("0 2000000 error") }
func (d *failingDisk) mend() { d.put(d.good) }

// shutDown shuts a file system down, as the kernel does after an error.
func shutDown(t *testing.T, dir string) {
	t.Helper()
	const shutdown, logflush = 0x8004587d, 1
	f, err := os.Open(dir)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(f.Fd()), shutdown, logflush)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// writeFails makes a file system on a failing disk write until a write fails.
func writeFails(t *testing.T, dir string) {
	t.Helper()
	for i := range 100 {
		err := os.Mkdir(filepath.Join(dir, fmt.Sprint("lost", i)), 0o700)
		if err == nil {
			err = filesystem.WriteBack(dir)
		}
		if err != nil {
			return
		}
	}
	t.Fatal("nothing fails on a failing disk")
}

// waitForPool waits until the driver notices that the pool's disk works again.
func (r *rig) waitForPool() {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, err := r.ListVolumes(r.t.Context(), &csi.ListVolumesRequest{})
		if err == nil {
			return
		}
		if time.Now().After(end) {
			r.t.Fatal(err)
		}
	}
}

// sameHealth checks that all health calls give the reasons want.
func (r *rig) sameHealth(what, volume, at string, want ...string) {
	r.t.Helper()
	ctx := r.t.Context()
	of := func(h *csi.VolumeHealth) (list []string) {
		for _, s := range h.GetHealthStatuses() {
			list = append(list, s.GetReason())
		}
		slices.Sort(list)
		return list
	}
	n, err := r.NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{VolumeId: volume, VolumePublishPath: r.path(at), StagingTargetPath: r.path("st")})
	r.must("health on the node", err)
	l, err := r.ControllerListVolumeHealth(ctx, &csi.ControllerListVolumeHealthRequest{})
	r.must("health of all", err)
	var listed []string
	for _, e := range l.GetEntries() {
		if e.GetVolumeId() == volume {
			listed = of(e)
		}
	}
	r.wantReasons(what, volume, want...)
	if got := of(n.GetVolumeHealth()); !slices.Equal(got, want) || !slices.Equal(listed, want) {
		r.t.Errorf("%s: the health's reasons on the node are %v, in the list %v, want %v", what, got, listed, want)
	}
}

// showsShutdown reports whether the mount table shows that the file system has
// shut down.
func showsShutdown(t *testing.T, dir string) bool {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	if err != nil || len(mounts) != 1 {
		t.Fatalf("mounts at %s: %v, %v", dir, mounts, err)
	}
	return slices.Contains(strings.Split(mounts[0].VFSOptions, ","), "shutdown")
}

// The kubelet's usual calls unmount and remount a file system that refuses all
// I/O or all writes, without help from anybody. The reason may be a disk that
// failed for a moment, or a shutdown of the file system.
func TestStage_failedFilesystem(t *testing.T) {
	const down, unreachable, readOnly, errors = "FilesystemShutDown", "FilesystemUnreachable", "FilesystemReadOnly", "FilesystemErrors"
	for _, c := range []struct {
		fs, by       string
		reasons      []string // of the volume's health
		stats, grow  codes.Code
		cut          codes.Code
		stage, write codes.Code // while it is still published
	}{
		{filesystem.XFS, "disk", []string{down}, codes.Internal, codes.FailedPrecondition, codes.FailedPrecondition, codes.FailedPrecondition, codes.FailedPrecondition},
		{filesystem.XFS, "shutdown", []string{down}, codes.Internal, codes.FailedPrecondition, codes.FailedPrecondition, codes.FailedPrecondition, codes.FailedPrecondition},
		{filesystem.Ext4, "disk", []string{errors, readOnly}, codes.OK, codes.FailedPrecondition, codes.FailedPrecondition, codes.FailedPrecondition, codes.FailedPrecondition},
		{filesystem.Ext4, "shutdown", []string{unreachable}, codes.OK, codes.FailedPrecondition, codes.FailedPrecondition, codes.FailedPrecondition, codes.FailedPrecondition},
		{filesystem.Btrfs, "disk", []string{readOnly}, codes.OK, codes.FailedPrecondition, codes.OK, codes.FailedPrecondition, codes.FailedPrecondition},
	} {
		t.Run(c.fs+" "+c.by, func(t *testing.T) {
			disk := newFailingDisk(t)
			r := rigOf(t, pool.Config{Name: "fast", VolumeGroup: "vgdriver", Devices: []string{disk.path()}})
			fs := mount(writer, c.fs)
			volume := r.volume(request("v", max(64, int64(filesystem.MinimumSize(c.fs))>>20), fs))
			r.must("stage", r.stage(volume, "st", fs))
			r.must("publish", r.publish(volume, "st", "tg", fs, false))
			r.must("publish", r.publish(volume, "st", "tg-ro", fs, true))
			r.fsynced("st", "b")
			r.sameHealth("a sound one", volume, "tg")
			if c.by == "disk" {
				disk.fail()
				writeFails(t, r.path("tg"))
				disk.mend()
				r.waitForPool()
			} else {
				shutDown(t, r.path("st"))
			}
			if c.fs == filesystem.Ext4 { // only a write makes the kernel notice the error
				_, err := r.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "first", SourceVolumeId: volume})
				r.want("the first cut", err, codes.FailedPrecondition)
			}
			if showsShutdown(t, r.path("st")) { // since Linux 6.15 readers of an ext4 also notice it
				c.stats = codes.Internal
			}
			r.sameHealth("one that fails", volume, "tg", c.reasons...)
			for _, at := range []string{"tg", "tg-ro", "st"} {
				_, err := r.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: volume, VolumePath: r.path(at)})
				r.want("stats at "+at, err, c.stats)
				_, err = r.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{VolumeId: volume, VolumePath: r.path(at)})
				r.want("expand at "+at, err, c.grow)
			}
			for range 2 {
				_, err := r.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "cut", SourceVolumeId: volume})
				r.want("cut", err, c.cut)
				_, err = r.CreateVolume(t.Context(), from("clone", 0, fs, fromVolume(volume)))
				r.want("clone", err, c.cut)
				if state := r.tool("dmsetup", "info", "-c", "--noheadings", "-o", "name,suspended"); strings.Contains(state, "Suspended") {
					t.Errorf("left suspended: %s", state)
				}
			}
			r.want("stage while it is published", r.stage(volume, "st", fs), c.stage)
			r.want("publish", r.publish(volume, "st", "tg2", fs, false), c.write)
			r.want("unstage what is published", r.unstage(volume, "st"), codes.FailedPrecondition)
			for _, at := range []string{"tg", "tg", "tg-ro", "tg2"} {
				r.must("unpublish "+at, r.unpublish(volume, at))
			}
			// Another pod starts before the volume is unstaged.
			r.want("publish before it is staged", r.publish(volume, "st", "tg", fs, false), codes.FailedPrecondition)
			r.must("stage anew", r.stage(volume, "st", fs))
			r.must("publish anew", r.publish(volume, "st", "tg", fs, false))
			r.write("tg", "content")
			r.must("unpublish", r.unpublish(volume, "tg"))
			for range 2 {
				r.must("unstage", r.unstage(volume, "st"))
			}
			r.must("stage", r.stage(volume, "st", fs))
			r.wantFiles("the file system mounted anew", "st", "b")
			r.snapshot("afterwards", volume)
			r.sameHealth("one that was mounted anew", volume, "st")
			r.must("unstage", r.unstage(volume, "st"))
		})
	}
}
