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
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
)

// causeExt4Error makes ext4 find an error, as damaged metadata would, and waits
// until the error is on record.
func (r *rig) causeExt4Error(volume string) {
	r.t.Helper()
	var st unix.Stat_t
	r.must("stat", unix.Stat(r.device(volume), &st))
	all, err := filepath.Glob("/sys/fs/ext4/*/trigger_fs_error")
	r.must("glob", err)
	for _, trigger := range all {
		number, err := os.ReadFile(filepath.Join("/sys/class/block", filepath.Base(filepath.Dir(trigger)), "dev"))
		r.must("read", err)
		if strings.TrimSpace(string(number)) == fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)) {
			r.must("trigger", os.WriteFile(trigger, []byte("damaged"), 0))
			for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				count, err := os.ReadFile(filepath.Join(filepath.Dir(trigger), "errors_count"))
				r.must("read", err)
				if strings.TrimSpace(string(count)) != "0" {
					return // the kernel records the error in the background
				}
			}
		}
	}
	r.t.Fatalf("%s is not mounted as ext4, or its error is not on record", volume)
}

func (r *rig) expand(volume string, mib int64) error {
	r.t.Helper()
	_, err := r.ControllerExpandVolume(r.t.Context(), &csi.ControllerExpandVolumeRequest{
		VolumeId: volume, CapacityRange: &csi.CapacityRange{RequiredBytes: mib << 20}})
	return err
}

// reasons returns the reasons of a volume's health from the Controller service.
func (r *rig) reasons(volume string) []string {
	r.t.Helper()
	var out []string
	one, err := r.ControllerGetVolumeHealth(r.t.Context(), &csi.ControllerGetVolumeHealthRequest{VolumeId: volume})
	r.must("health", err)
	for _, s := range one.GetVolumeHealth().GetHealthStatuses() {
		out = append(out, s.GetReason())
	}
	slices.Sort(out)
	return out
}

func (r *rig) wantReasons(what, volume string, want ...string) {
	r.t.Helper()
	if got := r.reasons(volume); !slices.Equal(got, want) {
		r.t.Errorf("%s: the health's reasons are %v, want %v", what, got, want)
	}
}

func (r *rig) mounted(at string) bool {
	r.t.Helper()
	m, err := filesystem.MountAt(r.path(at))
	r.must("look for mounts", err)
	return m != nil
}

// A stage that a retry cannot repair is in the volume's health until a stage
// succeeds.
func TestHealth_failedStage(t *testing.T) {
	r := newRig(t)
	c := mount(writer, filesystem.Ext4)
	volume := r.volume(request("volume", 32, c))
	labelled := mount(writer, filesystem.Ext4)
	labelled.GetMount().MountFlags = []string{"context=system_u:object_r:container_file_t:s0"}
	r.want("stage with an option that is not in effect", r.stage(volume, "st", labelled), codes.FailedPrecondition)
	r.sameHealth("an option that is not in effect", volume, "st", "NotStaged")
	r.must("stage", r.stage(volume, "st", c))
	r.sameHealth("one that is staged", volume, "st")
	r.must("unstage", r.unstage(volume, "st"))

	device := r.device(volume)
	saved := filepath.Join(t.TempDir(), "start")
	r.tool("dd", "if="+device, "of="+saved, "bs=64k", "count=1")
	r.tool("dd", "if=/dev/zero", "of="+device, "bs=64k", "count=1", "oflag=direct")
	r.want("stage without a superblock", r.stage(volume, "st", c), codes.FailedPrecondition)
	r.sameHealth("no superblock", volume, "st", "NotStaged")
	r.tool("dd", "if="+saved, "of="+device, "bs=64k", "count=1", "oflag=direct")
	r.must("stage what was mended", r.stage(volume, "st", c))
	r.sameHealth("one that was mended", volume, "st")
	r.must("unstage", r.unstage(volume, "st"))
}

// The health shows an ext4 with an aborted journal as read-only before anybody
// writes, also after a restart of the driver. Snapshots and expansions are
// refused.
func TestHealth_abortedJournal(t *testing.T) {
	r := newRig(t)
	c := mount(writer, filesystem.Ext4)
	c.GetMount().MountFlags = []string{"errors=remount-ro"}
	for name, mib := range map[string]int64{"small-blocks": 32, "large-blocks": 600} {
		volume := r.volume(request(name, mib, c))
		r.must("stage", r.stage(volume, "st", c))
		r.causeExt4Error(volume)
		r.sameHealth(name+" after an error", volume, "st", "FilesystemErrors", "FilesystemReadOnly")
		r.stop()
		r.start()
		r.sameHealth(name+" after an error, by a new process", volume, "st", "FilesystemErrors", "FilesystemReadOnly")
		_, err := r.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{VolumeId: volume, VolumePath: r.path("st")})
		r.want("expand", err, codes.FailedPrecondition)
		_, err = r.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "cut-" + name, SourceVolumeId: volume})
		r.want("cut", err, codes.FailedPrecondition)
		r.must("unstage", r.unstage(volume, "st"))
		r.must("stage anew", r.stage(volume, "st", c))
		r.write("st", "content")
		r.sameHealth(name+", mounted anew", volume, "st")
		r.must("unstage", r.unstage(volume, "st"))
	}
}

// A volume that is expanded and then mounted read-only does not grow, and its
// health shows this.
func TestHealth_readOnlyNotGrown(t *testing.T) {
	r := newRig(t)
	for fs, mib := range map[string]int64{filesystem.Ext4: 32, filesystem.XFS: 300} {
		c, ro := mount(writer, fs), mount(writer, fs)
		ro.GetMount().MountFlags = []string{"ro"}
		volume := r.volume(request(fs, mib, c))
		r.must("stage", r.stage(volume, "st", c))
		r.must("unstage", r.unstage(volume, "st"))
		r.must("stage read-only", r.stage(volume, "st", ro))
		r.sameHealth(fs+" that fills its volume", volume, "st")
		r.must("unstage", r.unstage(volume, "st"))
		r.must("expand", r.expand(volume, mib+64))
		r.must("stage read-only", r.stage(volume, "st", ro))
		r.sameHealth(fs+" that is read-only", volume, "st", "NotGrown")
		r.must("unstage", r.unstage(volume, "st"))
		r.must("stage", r.stage(volume, "st", c))
		r.sameHealth(fs+" that is grown", volume, "st")
		r.must("unstage", r.unstage(volume, "st"))
	}
}

// The health shows a file system that the kernel has shut down or made read-
// only.
func TestHealth_shutDownOrReadOnly(t *testing.T) {
	r := newRig(t)
	xfs := mount(writer, filesystem.XFS)
	volume := r.volume(request("xfs", 300, xfs))
	r.must("stage", r.stage(volume, "st", xfs))
	r.wantReasons("a sound one", volume)
	r.tool("xfs_io", "-x", "-c", "shutdown", r.path("st"))
	r.wantReasons("shut down", volume, "FilesystemShutDown")
	r.must("unmount", unix.Unmount(r.path("st"), 0))
	r.must("unstage", r.unstage(volume, "st"))

	ext4 := mount(writer, filesystem.Ext4)
	volume = r.volume(request("ext4", 32, ext4))
	r.must("stage", r.stage(volume, "st", ext4))
	fd, err := unix.Fspick(unix.AT_FDCWD, r.path("st"), unix.FSPICK_CLOEXEC)
	r.must("pick", err)
	r.must("make read-only what is below the mount", unix.FsconfigSetFlag(fd, "ro"))
	r.must("make read-only what is below the mount", unix.FsconfigReconfigure(fd))
	r.must("close", unix.Close(fd))
	r.wantReasons("read-only", volume, "FilesystemReadOnly")
	r.must("unstage", r.unstage(volume, "st"))
}
