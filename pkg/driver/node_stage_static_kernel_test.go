//go:build kernel

package driver

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// tool runs a command and returns its output.
func (r *rig) tool(args ...string) string {
	r.t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		r.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (r *rig) importLV(lv, name string) error {
	r.t.Helper()
	_, err := pool.Import(r.t.Context(), r.configs[0], pool.Options{}, pool.ImportSpec{LV: lv, Name: name,
		Probe: func(ctx context.Context, device string) (pool.Mode, string, error) {
			found, err := filesystem.Probe(ctx, device)
			if found == "" {
				return pool.Block, "", err
			}
			return pool.Filesystem, found, err
		}})
	return err
}

// allow lets static volumes name LVM2's own logical volume.
func (r *rig) allow(lv string) error {
	r.t.Helper()
	return pool.AllowStatic(r.t.Context(), r.configs[0], pool.Options{}, lv, func(ctx context.Context, device string) error {
		_, err := filesystem.IsSwap(ctx, device)
		return err
	})
}

// LVM2's own logical volume can be used unchanged as a static volume, and an
// import makes it an ordinary volume.
func TestStage_staticVolume(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	own := r.volume(request("own", 32, block(writer)))
	for _, lv := range []string{"data", "raw", "blank", "origin"} {
		r.tool("lvcreate", "-y", "-Wy", "-Zy", "-L", "64m", "-n", lv, "vgdriver")
	}
	r.tool("lvcreate", "-y", "-i2", "-L", "64m", "-n", "wide", "vgdriver")
	r.tool("mkfs.ext4", "-q", "/dev/vgdriver/data")
	r.tool("lvcreate", "-y", "-s", "-L", "16m", "-n", "theirsnap", "vgdriver/origin")
	r.tool("lvchange", "-an", "vgdriver/data", "vgdriver/blank")
	id := func(lv string) string { return "v1:node-1:fast:" + lv }
	for _, lv := range []string{"data", "raw", "blank"} {
		r.must("allow "+lv, r.allow(lv))
	}

	static := mount(writer, "") // a PersistentVolume that is written by hand need not name a file system
	for range 2 {
		r.must("stage", r.stage(id("data"), "staging", static))
	}
	r.must("publish", r.publish(id("data"), "staging", "target", static, false))
	r.write("target", "kept")
	r.must("stage block", r.stage(id("raw"), "staging-raw", block(writer)))
	r.must("publish block", r.publish(id("raw"), "staging-raw", "target-raw", block(writer), false))
	for at, volume := range map[string]string{"target": id("data"), "target-raw": id("raw")} {
		stats, err := r.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: volume, VolumePath: r.path(at)})
		if err != nil || len(stats.GetUsage()) == 0 || (len(stats.GetUsage()) == 2) != (at == "target") {
			t.Errorf("stats at %s: %v, %v", at, stats, err)
		}
	}
	r.want("stage with another type", r.stage(id("data"), "staging-2", mount(writer, "xfs")), codes.FailedPrecondition)
	r.want("stage a blank one", r.stage(id("blank"), "staging-2", mount(writer, "ext4")), codes.FailedPrecondition)
	r.want("stage none", r.stage(id("none"), "staging-2", static), codes.NotFound)
	if out := r.tool("wipefs", "/dev/mapper/vgdriver-blank"); out != "" {
		t.Errorf("a blank logical volume of LVM2's was formatted: %s", out)
	}
	refused := func(what string, err error) {
		t.Helper()
		r.want(what, err, codes.FailedPrecondition)
		if !strings.Contains(status.Convert(err).Message(), "csi-dmsnap import") {
			t.Errorf("%s: %v does not say what to do", what, err)
		}
	}
	snapshot := &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: id("data")}
	expand := &csi.ControllerExpandVolumeRequest{VolumeId: id("data"), CapacityRange: &csi.CapacityRange{RequiredBytes: 128 << 20}}
	_, err := r.CreateSnapshot(ctx, snapshot)
	refused("snapshot", err)
	_, err = r.ControllerExpandVolume(ctx, expand)
	refused("expand", err)
	refused("delete", r.remove(id("blank")))
	clone := request("clone", 64, mount(writer, "ext4"))
	clone.VolumeContentSource = fromVolume(id("data"))
	_, err = r.CreateVolume(ctx, clone)
	refused("clone", err)

	for lv, want := range map[string]error{
		"none": pool.ErrNotFound, "origin": pool.ErrPrecondition, "theirsnap": pool.ErrPrecondition, "wide": pool.ErrPrecondition, "own": pool.ErrConflict,
	} {
		if err := r.importLV(lv, "other"); toStatus(err) == nil || status.Code(toStatus(err)) != status.Code(toStatus(want)) {
			t.Errorf("import of %s: %v, want %v", lv, err, want)
		}
	}
	if err := r.importLV("data", "own"); status.Code(toStatus(err)) != codes.AlreadyExists {
		t.Errorf("import under a name that is taken: %v", err)
	}
	for range 2 {
		r.must("import", r.importLV("data", "imported")) // while it is in use and the driver runs
	}
	r.must("import", r.importLV("raw", ""))
	if tags := r.tool("lvs", "--noheadings", "-o", "tags", "vgdriver/data"); !strings.Contains(tags, "dmsnap:name=imported") {
		t.Errorf("tags of the imported: %s", tags)
	}
	s, err := r.CreateSnapshot(ctx, snapshot)
	r.must("snapshot of the imported", err)
	r.write("target", "changed")
	_, err = r.ControllerExpandVolume(ctx, expand)
	r.must("expand the imported", err)
	_, err = r.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: id("data"), VolumePath: r.path("target")})
	r.must("expand its file system", err)
	r.read("target", "changed")
	restore := request("restore", 64, mount(writer, "ext4"))
	restore.VolumeContentSource = fromSnapshot(s.GetSnapshot().GetSnapshotId())
	restored := r.volume(restore)
	r.must("stage the restored", r.stage(restored, "staging-3", mount(writer, "ext4")))
	r.read("staging-3", "kept")
	for at, volume := range map[string]string{"target": id("data"), "target-raw": id("raw")} {
		r.must("unpublish", r.unpublish(volume, at))
	}
	for at, volume := range map[string]string{"staging": id("data"), "staging-raw": id("raw"), "staging-3": restored} {
		r.must("unstage", r.unstage(volume, at))
	}
	_, err = r.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: s.GetSnapshot().GetSnapshotId()})
	r.must("delete the snapshot", err)
	for _, volume := range []string{id("data"), id("raw"), restored, own} {
		r.must("delete", r.remove(volume))
	}
	if _, err := os.Lstat(filepath.Join("/dev/mapper", "vgdriver-data")); err == nil {
		t.Error("a device of the deleted stayed")
	}
	// A logical volume that is only staged and unstaged does not change.
	r.must("stage", r.stage(id("blank"), "staging-4", block(writer)))
	r.must("unstage", r.unstage(id("blank"), "staging-4"))
	if out := strings.TrimSpace(r.tool("lvs", "--noheadings", "-o", "tags", "vgdriver/blank")); out != "dmsnap:static" {
		t.Errorf("a logical volume of LVM2's has the tags %s, want only that by which it may be named", out)
	}
}

// A static volume never reaches a logical volume that the host uses, or that
// nobody has allowed.
func TestStage_staticInUseByHost(t *testing.T) {
	r := newRig(t)
	for _, lv := range []string{"files", "root", "swap", "offswap", "held", "opened", "origin"} {
		r.tool("lvcreate", "-qq", "-y", "-Wy", "-Zy", "-L", "32m", "-n", lv, "vgdriver")
	}
	for _, lv := range []string{"files", "root"} {
		r.tool("mkfs.ext4", "-q", "/dev/vgdriver/"+lv)
	}
	dir := t.TempDir() // not below the kubelet directory
	r.tool("mount", "/dev/vgdriver/root", dir)
	defer r.tool("umount", dir)
	for _, lv := range []string{"swap", "offswap"} {
		r.tool("mkswap", "-q", "/dev/vgdriver/"+lv)
	}
	r.tool("swapon", "/dev/vgdriver/swap")
	defer r.tool("swapoff", "/dev/vgdriver/swap")
	r.tool("dmsetup", "create", "hostsown", "--table", "0 8 linear /dev/vgdriver/held 0")
	defer r.tool("dmsetup", "remove", "--retry", "hostsown")
	f, err := os.Open("/dev/vgdriver/opened")
	r.must("open", err)
	defer f.Close()
	r.tool("lvcreate", "-qq", "-y", "-s", "-L", "16m", "-n", "theirsnap", "vgdriver/origin")
	r.tool("lvcreate", "-qq", "-y", "--type", "mirror", "-m1", "--mirrorlog", "core", "--nosync", "-L", "16m", "-n", "mirrored", "vgdriver")
	id := func(lv string) string { return "v1:node-1:fast:" + lv }
	refused := func(lv string, as ...*csi.VolumeCapability) {
		t.Helper()
		for _, c := range as {
			err := r.stage(id(lv), "st-"+lv, c)
			if r.want("stage "+lv, err, codes.FailedPrecondition); err == nil {
				r.must("unstage "+lv, r.unstage(id(lv), "st-"+lv))
			}
		}
	}
	raw, files := block(writer), mount(writer, "")

	r.tool("lvchange", "-qq", "-an", "vgdriver/files")
	refused("files", raw, files) // nobody has allowed it yet
	r.must("allow", r.allow("files"))
	r.must("stage", r.stage(id("files"), "st", files))
	r.must("stage again", r.stage(id("files"), "st", files))
	r.want("stage elsewhere", r.stage(id("files"), "st-2", files), codes.FailedPrecondition)
	r.must("unstage", r.unstage(id("files"), "st"))

	for _, lv := range []string{"root", "held", "theirsnap", "mirrored_mimage_0"} {
		if err := r.allow(lv); status.Code(toStatus(err)) != codes.FailedPrecondition {
			t.Errorf("allow %s: %v", lv, err)
		}
		refused(lv, raw, files)
	}
	// The tag does not help: it allows a static volume, but does not show that the
	// logical volume is free.
	for _, lv := range []string{"root", "swap", "offswap", "held", "opened", "theirsnap"} {
		r.tool("lvchange", "-qq", "--addtag", "dmsnap:static", "vgdriver/"+lv)
		refused(lv, raw)
	}
	refused("root", files)
	refused("offswap", files)
	for _, lv := range []string{"origin", "mirrored"} { // lvm2 itself activates these for users
		r.tool("lvchange", "-qq", "--addtag", "dmsnap:static", "vgdriver/"+lv)
		r.must("stage "+lv, r.stage(id(lv), "st-"+lv, block(writer)))
		r.must("unstage "+lv, r.unstage(id(lv), "st-"+lv))
	}
}

// The driver never writes to a btrfs that is not its own copy, and gives a copy
// its own fsid for every type of checksum.
func TestStage_staticBtrfs(t *testing.T) {
	r := newRig(t)
	c := mount(writer, filesystem.Btrfs)
	for _, sum := range []string{"crc32c", "xxhash", "sha256", "blake2"} {
		t.Run(sum, func(t *testing.T) {
			r.t = t
			const mib = 256
			r.tool("lvcreate", "-qq", "-y", "-Wn", "-Zn", "-L", fmt.Sprintf("%dm", mib), "-n", sum, "vgdriver")
			device, id := "/dev/vgdriver/"+sum, "v1:node-1:fast:"+sum
			r.tool("mkfs.btrfs", "-q", "-f", "--csum", sum, device)
			fsid := func(device string) string { return r.tool("blkid", "-p", "-s", "UUID", "-o", "value", device) }
			was := fsid(device)
			r.must("allow", r.allow(sum))
			host := t.TempDir()
			r.tool("mount", device, host)
			r.want("stage what the host has mounted", r.stage(id, "st-"+sum, c), codes.FailedPrecondition)
			r.tool("umount", host)
			r.must("stage", r.stage(id, "st-"+sum, c))
			r.write("st-"+sum, "content")
			r.must("unstage", r.unstage(id, "st-"+sum))
			if now := fsid(device); now != was {
				t.Errorf("the fsid of the user's own was changed from %s to %s", was, now)
			}
			r.must("import", r.importLV(sum, ""))
			r.must("stage the imported", r.stage(id, "st-"+sum, c))
			snapshot := r.snapshot("s-"+sum, id)
			restored := r.volume(from("restored-"+sum, mib, c, fromSnapshot(snapshot)))
			r.must("stage the copy beside it", r.stage(restored, "copy-"+sum, c))
			r.read("copy-"+sum, "content")
			r.must("stage the copy again", r.stage(restored, "copy-again-"+sum, c))
			r.must("unstage", r.unstage(id, "st-"+sum))
			for _, at := range []string{"copy-", "copy-again-"} {
				r.must("unmount", filesystem.Unmount(r.path(at+sum)))
			}
			r.tool("btrfs", "check", "--readonly", r.device(restored))
			if now := fsid(r.device(id)); now != was {
				t.Errorf("the fsid of the imported was changed from %s to %s", was, now)
			}
			if now := fsid(r.device(restored)); now == was {
				t.Error("the copy has the source's fsid")
			}
			r.must("unstage", r.unstage(restored, "copy-"+sum))
			r.must("delete", r.remove(restored))
			_, err := r.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: snapshot})
			r.must("delete", err)
			r.must("unstage", r.unstage(id, "st-"+sum))
			r.must("delete", r.remove(id))
		})
	}
	r.t = t
	for _, lv := range []string{"one", "two", "seed"} {
		r.tool("lvcreate", "-qq", "-y", "-Wn", "-Zn", "-L", "256m", "-n", lv, "vgdriver")
	}
	r.tool("mkfs.btrfs", "-q", "-f", "/dev/vgdriver/one", "/dev/vgdriver/two")
	r.tool("mkfs.btrfs", "-q", "-f", "/dev/vgdriver/seed")
	r.tool("btrfstune", "-S", "1", "/dev/vgdriver/seed")
	for _, lv := range []string{"one", "seed"} {
		r.must("allow", r.allow(lv))
		r.want("stage "+lv, r.stage("v1:node-1:fast:"+lv, "st", c), codes.FailedPrecondition)
	}
}
