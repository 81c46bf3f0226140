//go:build kernel

package driver

import (
	"bytes"
	"encoding/binary"
	"os"
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

// raidEvery is the alignment of the superblock in the old format of Linux's RAID.
// The superblock lies at the last multiple that is followed by as many bytes.
const raidEvery = 64 * size.KiB

// raidBlock returns a superblock of Linux's RAID, format 0.90, which is valid at any
// place.
func raidBlock() []byte {
	b := make([]byte, 4096)
	binary.LittleEndian.PutUint32(b, 0xa92b4efc)
	binary.LittleEndian.PutUint32(b[8:], 90)
	return b
}

// signatureRig returns a rig on two volume groups of LVM2's whose free extents are
// full of old signatures.
func signatureRig(t *testing.T) *rig {
	t.Helper()
	kubelet, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, kubelet: kubelet}
	for i, c := range []pool.Config{{Name: "fast", VolumeGroup: "vgdriver"}, {Name: "other", VolumeGroup: "vgother"}} {
		c.FirstStore, c.BurstRate = 16*size.MiB, 200*size.MiB
		r.configs = append(r.configs, c)
		r.makeSignatures(scratch(t)[i], c.VolumeGroup)
	}
	r.start()
	t.Cleanup(func() {
		r.tearDown()
		if err := lvm2test.Remove("vgother"); err != nil {
			t.Error(err)
		}
	})
	return r
}

// makeSignatures creates a volume group whose extents are full of signatures.
func (r *rig) makeSignatures(disk, group string) {
	r.t.Helper()
	r.blank(disk)
	r.tool("vgcreate", "-q", group, disk)
	r.tool("lvcreate", "-qq", "-y", "-Wn", "-Zn", "-l", "100%FREE", "-n", "old", group)
	f, err := os.OpenFile("/dev/"+group+"/old", os.O_WRONLY, 0)
	r.must("open", err)
	end, err := f.Seek(0, 2)
	r.must("seek", err)
	for at := int64(0); at < end; at += int64(raidEvery) {
		_, err := f.WriteAt(raidBlock(), at)
		r.must("write", err)
	}
	r.must("sync", f.Sync())
	r.must("close", f.Close())
	r.tool("lvremove", "-qq", "-y", group+"/old")
}

// wantOnly checks that a probe of the volume finds its file system and nothing else.
func (r *rig) wantOnly(what, volume, fs string) {
	r.t.Helper()
	if found, err := filesystem.Probe(r.t.Context(), r.device(volume)); err != nil || found != fs {
		r.t.Errorf("%s: on it is %q, %v", what, found, err)
	}
}

// Extents that are added to a file system volume show no old signature at the
// end of the device.
func TestStage_signaturesInAddedExtents(t *testing.T) {
	for _, fs := range []string{filesystem.Ext4, filesystem.XFS} {
		t.Run(fs, func(t *testing.T) {
			r := signatureRig(t)
			least := max(int64(filesystem.MinimumSize(fs))>>20, 48)
			c := mount(writer, fs)
			q := request("volume", least, c)
			q.Parameters = map[string]string{"pool": "fast"}
			volume := r.volume(q)
			r.must("stage", r.stage(volume, "st", c))
			r.write("st", "kept")
			r.must("unstage", r.unstage(volume, "st"))
			snapshot := r.snapshot("snapshot", volume)
			r.wantOnly("a new one", volume, fs)

			_, err := r.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
				VolumeId: volume, CapacityRange: &csi.CapacityRange{RequiredBytes: (least + 24) << 20}})
			r.must("expand", err)
			larger := r.volume(from("larger", least+24, c, fromSnapshot(snapshot)))
			q = from("elsewhere", least+24, c, fromSnapshot(snapshot))
			q.Parameters = map[string]string{"pool": "other"}
			elsewhere := r.createCopy(q)
			for what, id := range map[string]string{"expanded": volume, "restored to a larger size": larger, "restored into another pool": elsewhere} {
				r.wantOnly(what, id, fs)
				r.must("stage what is "+what, r.stage(id, "st", c))
				r.read("st", "kept")
				r.must("unstage", r.unstage(id, "st"))
				r.wantOnly(what+" and grown", id, fs)
			}
		})
	}
}

// A recorded file system that has its superblock is mounted, whatever its users
// wrote to the end of the device. Without its superblock the volume is neither
// mounted nor formatted.
func TestStage_signaturesBesideFilesystem(t *testing.T) {
	r := newRig(t)
	c := mount(writer, filesystem.Ext4)
	volume := r.volume(request("volume", 32, c))
	r.must("stage", r.stage(volume, "st", c))
	r.write("st", "kept")
	f, err := os.Create(filepath.Join(r.path("st"), "raid"))
	r.must("create", err)
	for err == nil { // until the file system is full
		_, err = f.Write(bytes.Repeat(raidBlock()[:1024], 1024)) // ext4 has no smaller blocks
	}
	r.must("close", f.Close())
	r.must("unstage", r.unstage(volume, "st"))
	if _, err := filesystem.Probe(t.Context(), r.device(volume)); err == nil {
		t.Error("the file's content is not found at the end of the device: the test proves nothing")
	}
	snapshot := r.snapshot("snapshot", volume)
	reader := mount(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, filesystem.Ext4)
	for what, q := range map[string]struct {
		id string
		c  *csi.VolumeCapability
	}{
		"volume": {volume, c}, "restored": {r.volume(from("restored", 32, c, fromSnapshot(snapshot))), c},
		"clone": {r.volume(from("clone", 32, c, fromVolume(volume))), c}, "reader": {r.volume(from("reader", 32, reader, fromSnapshot(snapshot))), reader},
	} {
		r.must("stage "+what, r.stage(q.id, "st", q.c))
		r.read("st", "kept")
		r.must("unstage "+what, r.unstage(q.id, "st"))
	}

	for what, content := range map[string][]byte{"nothing": make([]byte, size.MiB), "an xfs": append([]byte("XFSB"), make([]byte, size.MiB)...)} {
		f, err := os.OpenFile(r.device(volume), os.O_RDWR, 0)
		r.must("open", err)
		_, err = f.WriteAt(content, 0)
		r.must("write", err)
		r.must("close", f.Close())
		err = r.stage(volume, "st", c)
		r.want("stage what has "+what+" now", err, codes.FailedPrecondition)
		if err != nil && !strings.Contains(err.Error(), "ext4") {
			t.Errorf("%v does not name the expected file system", err)
		}
		got := make([]byte, len(content))
		f, err = os.Open(r.device(volume))
		r.must("open", err)
		_, err = f.ReadAt(got, 0)
		r.must("read", err)
		r.must("close", f.Close())
		if !bytes.Equal(got, content) {
			t.Errorf("%s: it was written to", what)
		}
	}
}
