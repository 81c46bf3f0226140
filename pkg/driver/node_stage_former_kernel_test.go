//go:build kernel

package driver

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2/lvm2test"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const formerSecret = "the former owner's password"

// makeSecret makes a file system with a secret on the device.
func (r *rig) makeSecret(device, fs string) {
	r.t.Helper()
	dir := r.t.TempDir()
	force := map[string]string{filesystem.Ext4: "-F"}[fs]
	r.tool("mkfs."+fs, "-q", cmp.Or(force, "-f"), device)
	r.tool("mount", device, dir)
	r.must("write", os.WriteFile(filepath.Join(dir, "secret"), []byte(formerSecret), 0o600))
	r.tool("umount", dir)
}

// formerGroup returns a rig on a volume group from which LVM2 removed a logical
// volume with a file system. The extents were not wiped, and the driver wipes only
// the extents that it must.
func formerGroup(t *testing.T, fs string, mib int64) *rig {
	t.Helper()
	kubelet, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, kubelet: kubelet}
	disks := scratch(t)
	for _, d := range disks {
		r.blank(d)
	}
	r.tool(append([]string{"vgcreate", "-q", "vgdriver"}, disks...)...)
	r.tool("lvcreate", "-qq", "-y", "-Wn", "-Zn", "-L", fmt.Sprintf("%dm", mib), "-n", "old", "vgdriver", disks[0])
	r.makeSecret("/dev/vgdriver/old", fs)
	r.tool("lvremove", "-qq", "-y", "vgdriver/old")
	r.configs = []pool.Config{{Name: "fast", VolumeGroup: "vgdriver", FirstStore: 16 * size.MiB, BurstRate: 200 * size.MiB, Clean: pool.CleanNever}}
	r.start()
	t.Cleanup(func() { r.tearDown() })
	return r
}

// blank overwrites the first MiB of a disk, so that it is no physical volume.
func (r *rig) blank(disk string) {
	r.t.Helper()
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	r.must("open", err)
	_, err = f.Write(make([]byte, size.MiB))
	r.must("blank "+disk, err)
	r.must("close", f.Close())
}

// tearDown stops the driver and removes its volume group.
func (r *rig) tearDown() {
	r.unmountAll()
	r.hydrated()
	r.stop()
	for _, args := range [][]string{{"vgck", "vgdriver"}, {"vgchange", "-an", "vgdriver"}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			r.t.Errorf("%v: %v: %s", args, err, out)
		}
	}
	if err := lvm2test.Remove("vgdriver"); err != nil {
		r.t.Error(err)
	}
}

// wantFresh stages a volume twice, and checks that it gets a new file system and
// keeps it.
func (r *rig) wantFresh(what, id string, c *csi.VolumeCapability) {
	r.t.Helper()
	r.must("stage "+what, r.stage(id, "fresh", c))
	if b, err := os.ReadFile(r.path("fresh/secret")); err == nil {
		r.t.Errorf("%s: the tenant reads %q", what, b)
	}
	r.write("fresh", what)
	r.must("unstage "+what, r.unstage(id, "fresh"))
	r.must("stage again "+what, r.stage(id, "fresh", c))
	r.read("fresh", what)
	r.must("unstage "+what, r.unstage(id, "fresh"))
}

// from returns a request for a copy of source.
func from(name string, mib int64, c *csi.VolumeCapability, source *csi.VolumeContentSource) *csi.CreateVolumeRequest {
	q := request(name, mib, c)
	q.VolumeContentSource = source
	return q
}

// A copy of a volume that never had a file system does not show the file system
// of a former owner of its extents.
func TestStage_formerOwner(t *testing.T) {
	for _, fs := range []string{filesystem.Ext4, filesystem.XFS, filesystem.Btrfs} {
		t.Run(fs, func(t *testing.T) {
			mib := max(64, int64(filesystem.MinimumSize(fs))>>20)
			r := formerGroup(t, fs, mib)
			c := mount(writer, fs)
			reader := mount(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, fs)
			volume := r.volume(request("origin", mib, c))
			s1 := r.snapshot("s1", volume)
			scratch := from("scratch", mib, c, fromSnapshot(s1))
			scratch.Parameters = map[string]string{"transient": "true"}
			copies := []*csi.CreateVolumeRequest{from("restored", mib, c, fromSnapshot(s1)), scratch}
			if fs == filesystem.Ext4 { // volumes of the others are larger
				copies = append(copies, from("larger", mib+32, c, fromSnapshot(s1)), from("cloned", mib, c, fromVolume(volume)))
			}
			for _, q := range copies {
				id := r.volume(q)
				r.wantFresh(q.GetName(), id, c)
				if q == scratch {
					r.stop()
					for _, device := range []string{"vgdriver-scratch", "vgdriver-scratch-cow"} { // as a reboot would
						r.tool("dmsetup", "remove", "--retry", device)
					}
					r.start()
					r.wantFresh("scratch, begun again", id, c)
				}
				r.must("delete", r.remove(id))
			}
			for _, source := range []*csi.VolumeContentSource{fromSnapshot(s1), fromVolume(volume)} {
				_, err := r.CreateVolume(t.Context(), from("reader", mib, reader, source))
				r.want("a reader of what has no file system", err, codes.FailedPrecondition)
			}

			if fs != filesystem.Ext4 {
				return
			}
			// Once the volume has a file system, new copies have it too. Older snapshots do
			// not change.
			r.wantFresh("origin", volume, c)
			s2 := r.snapshot("s2", volume)
			restored := r.volume(from("restored-2", mib, c, fromSnapshot(s2)))
			r.must("stage", r.stage(restored, "st", c))
			r.read("st", "origin")
			r.must("unstage", r.unstage(restored, "st"))
			r.must("delete", r.remove(restored))
			restored = r.volume(from("restored-3", mib, c, fromSnapshot(s1)))
			s3 := r.snapshot("s3", restored)
			r.wantFresh("a copy of a copy", r.volume(from("restored-4", mib, c, fromSnapshot(s3))), c)
			r.wantFresh("restored after the format", restored, c)
		})
	}
}

// A volume in a new pool does not show content of a former pool on the same
// disks.
func TestStage_formerPool(t *testing.T) {
	r := newRig(t)
	c := mount(writer, filesystem.Ext4)
	old := r.volume(request("old", 64, c))
	r.must("stage", r.stage(old, "old", c))
	r.must("write", os.WriteFile(r.path("old/secret"), []byte(formerSecret), 0o600))
	r.must("unstage", r.unstage(old, "old"))
	r.stop()
	r.must("remove the group", lvm2test.Remove("vgdriver"))
	for _, d := range scratch(t) {
		r.tool("pvremove", "-qq", d)
	}
	r.start()
	volume := r.volume(request("origin", 64, c))
	r.wantFresh("a restored", r.volume(from("restored", 64, c, fromSnapshot(r.snapshot("s", volume)))), c)
	r.wantFresh("the volume", volume, c)
}

// A volume that is rolled back to a time before its first format gets a new
// file system: neither its own nor the former owner's comes back.
func TestStage_rolledBackBeforeFormat(t *testing.T) {
	r := formerGroup(t, filesystem.Ext4, 64)
	c := mount(writer, filesystem.Ext4)
	volume := r.volume(request("origin", 64, c))
	r.snapshot("s1", volume)
	r.wantFresh("the volume", volume, c)
	r.snapshot("s2", volume)
	back := func(to string) {
		t.Helper()
		_, err := pool.Rollback(t.Context(), r.configs[0], pool.Options{}, pool.RollbackSpec{Volume: "origin", Snapshot: to})
		r.must("rollback", err)
	}
	back("s1")
	r.must("stage", r.stage(volume, "st", c))
	if found, err := os.ReadDir(r.path("st")); err != nil || len(found) != 1 {
		t.Errorf("rolled back to before its file system it has %v, %v; want a new one", found, err)
	}
	r.must("unstage", r.unstage(volume, "st"))
	back("s2")
	r.must("stage", r.stage(volume, "st", c))
	r.read("st", "the volume")
	r.must("unstage", r.unstage(volume, "st"))
}

// A volume that is recorded as formatted, but begins with extents of unknown
// content, is not mounted.
func TestStage_formattedWithUnknownHead(t *testing.T) {
	r := formerGroup(t, filesystem.Ext4, 64)
	c := mount(writer, filesystem.Ext4)
	volume := r.volume(request("origin", 64, c))
	r.tool("lvchange", "-qq", "--deltag", "dmsnap:unformatted", "vgdriver/origin")
	err := r.stage(volume, "st", c)
	r.want("stage what counts as formatted", err, codes.FailedPrecondition)
	if !strings.Contains(err.Error(), "lvchange --addtag dmsnap:unformatted vgdriver/origin") {
		t.Errorf("%v does not say what to do", err)
	}
	r.tool("lvchange", "-qq", "--addtag", "dmsnap:unformatted", "vgdriver/origin")
	r.wantFresh("the volume", volume, c)
}

// A volume that an older release formatted, and whose first extents it left
// recorded as unknown, can be used and restored. A raw copy of it is refused as
// before.
func TestStage_formattedByOlderBuild(t *testing.T) {
	r := formerGroup(t, filesystem.Ext4, 64)
	c := mount(writer, filesystem.Ext4)
	volume := r.volume(request("origin", 64, c))
	r.must("stage", r.stage(volume, "st", c))
	r.write("st", "the volume's own")
	r.must("unstage", r.unstage(volume, "st"))
	snapshot := r.snapshot("snap", volume)
	for _, lv := range []string{"vgdriver/origin", "vgdriver/snap"} {
		args := []string{"lvchange", "-qq", "--addtag", "dmsnap:unknown=0.0+g"}
		for tag := range strings.SplitSeq(strings.TrimSpace(r.tool("lvs", "--noheadings", "-o", "tags", lv)), ",") {
			if strings.HasPrefix(tag, "dmsnap:unknown=") {
				args = append(args, "--deltag", tag)
			}
		}
		r.tool(append(args, lv)...)
	}
	r.must("stage a volume that an older release formatted", r.stage(volume, "st", c))
	r.read("st", "the volume's own")
	r.must("unstage", r.unstage(volume, "st"))
	q := request("copy", 64, c)
	q.VolumeContentSource = fromSnapshot(snapshot)
	restored := r.volume(q)
	r.must("stage a restore", r.stage(restored, "copy", c))
	r.read("copy", "the volume's own")
	r.must("unstage the restore", r.unstage(restored, "copy"))
	q = request("raw", 64, block(writer))
	q.VolumeContentSource = fromSnapshot(snapshot)
	_, err := r.CreateVolume(t.Context(), q)
	r.want("restore it as a raw block volume", err, codes.FailedPrecondition)
}
