//go:build kernel

package driver

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
)

// An ext4 with an error on record does not grow while it is mounted. Its pod
// starts, the health shows the error, and the next stage repairs and grows it.
func TestStage_ext4WithError(t *testing.T) {
	r := newRig(t)
	c := mount(writer, filesystem.Ext4)
	volume := r.volume(request("volume", 32, c))
	r.must("stage", r.stage(volume, "st", c))
	r.write("st", "kept")
	r.wantReasons("a sound one", volume)
	r.causeExt4Error(volume)
	r.wantReasons("with an error", volume, "FilesystemErrors")
	snapshot := r.snapshot("snapshot", volume)
	r.must("expand", r.expand(volume, 64))
	_, err := r.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{VolumeId: volume, VolumePath: r.path("st")})
	r.want("grow with an error on record", err, codes.FailedPrecondition) // with another code the kubelet would start no pod
	r.must("stage again", r.stage(volume, "st", c))
	r.wantReasons("not grown", volume, "FilesystemErrors", "NotGrown")
	r.stop()
	r.start()
	r.wantReasons("not grown, by a new process", volume, "FilesystemErrors", "NotGrown")
	r.must("unstage", r.unstage(volume, "st"))
	r.wantReasons("not staged", volume)

	reader := mount(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, filesystem.Ext4)
	shown := r.volume(from("shown", 32, reader, fromSnapshot(snapshot)))
	r.must("stage a reader", r.stage(shown, "reader", reader))
	r.read("reader", "kept")
	h, err := r.ControllerGetVolumeHealth(t.Context(), &csi.ControllerGetVolumeHealthRequest{VolumeId: shown})
	r.must("health of the reader's", err)
	if s := h.GetVolumeHealth().GetHealthStatuses(); len(s) != 1 || s[0].GetReason() != "FilesystemErrors" || !strings.Contains(s[0].GetMessage(), "restore the snapshot to a writable volume") {
		t.Errorf("health of a read-only restore with errors: %v", s)
	}
	r.must("unstage the reader", r.unstage(shown, "reader"))

	for what, q := range map[string]struct {
		volume string
		total  int64
	}{"expanded": {volume, 50 << 20}, "restored": {r.volume(from("restored", 96, c, fromSnapshot(snapshot))), 80 << 20}} {
		r.must("stage what is "+what, r.stage(q.volume, "st", c))
		r.read("st", "kept")
		r.wantReasons(what+" and repaired", q.volume)
		if got := r.total(q.volume, "st"); got < q.total {
			t.Errorf("the %s volume did not grow: %d bytes", what, got)
		}
		r.must("unstage", r.unstage(q.volume, "st"))
		r.checkFilesystem(filesystem.Ext4, r.device(q.volume))
	}
}

// An ext4 that e2fsck does not repair without decisions is not mounted, and the
// failed call leaves nothing behind.
func TestStage_damagedExt4(t *testing.T) {
	r := newRig(t)
	c := mount(writer, filesystem.Ext4)
	volume := r.volume(request("volume", 32, c))
	r.must("stage", r.stage(volume, "st", c))
	r.causeExt4Error(volume)
	r.must("unstage", r.unstage(volume, "st"))
	r.tool("debugfs", "-w", "-R", "clri <2>", r.device(volume))
	err := r.stage(volume, "st", c)
	r.want("stage what is damaged", err, codes.FailedPrecondition)
	if err != nil && !strings.Contains(err.Error(), "e2fsck -f "+r.device(volume)) {
		t.Errorf("%v does not say what to do", err)
	}
	if r.mounted("st") {
		t.Error("it is mounted")
	}
	r.sameHealth("one that is damaged", volume, "st", "FilesystemErrors")
	r.tool("sh", "-c", "e2fsck -fy "+r.device(volume)+"; test $? -lt 4")
	r.must("stage what was repaired", r.stage(volume, "st", c))
	r.sameHealth("one that was repaired", volume, "st")
	r.must("unstage", r.unstage(volume, "st"))
}

// A volume that may have been used is never formatted, whatever its content
// looks like.
func TestStage_formatsOnce(t *testing.T) {
	r := newRig(t)
	c := mount(writer, "ext4")
	// Wipe all extents: a stage wipes extents of unknown content, and would wipe what
	// this test writes.
	capacity, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{})
	r.must("capacity", err)
	r.must("delete", r.remove(r.volume(request("all", capacity.GetMaximumVolumeSize().GetValue()>>20, block(writer)))))
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		now, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{})
		r.must("capacity", err)
		if now.GetAvailableCapacity() == capacity.GetAvailableCapacity() {
			break
		}
		if time.Since(begin) > time.Minute {
			t.Fatalf("not wiped: %v", now)
		}
	}
	volume := r.volume(request("v", 64, c))

	// Foreign content on a volume that was never formatted.
	mbr := make([]byte, 512)
	mbr[446+4], mbr[446+8], mbr[446+13] = 0x83, 8, 16
	mbr[510], mbr[511] = 0x55, 0xaa
	put := func(data []byte) {
		t.Helper()
		f, err := os.OpenFile(r.device(volume), os.O_WRONLY|os.O_SYNC, 0)
		r.must("open", err)
		defer f.Close()
		_, err = f.Write(data)
		r.must("write", err)
	}
	put(mbr)
	r.want("stage on a partition table", r.stage(volume, "st", c), codes.FailedPrecondition)
	put(make([]byte, 512))
	// The file system of a call that was interrupted before it recorded the format.
	r.must("format", filesystem.Format(t.Context(), r.device(volume), filesystem.Ext4))
	r.must("stage", r.stage(volume, "st", c))
	r.write("st", "content")
	r.must("unstage", r.unstage(volume, "st"))

	put(make([]byte, 1<<20))
	r.want("stage what lost its superblock", r.stage(volume, "st", c), codes.FailedPrecondition)
	f, err := os.Open(r.device(volume))
	r.must("open", err)
	head := make([]byte, 1<<20)
	_, err = f.Read(head)
	f.Close()
	r.must("read", err)
	for _, b := range head {
		if b != 0 {
			t.Fatal("a volume that had been formatted was written to")
		}
	}
	// A copy of a block volume is also never formatted.
	raw := r.volume(request("raw", 64, block(writer)))
	q := request("copy", 64, c)
	q.VolumeContentSource = fromVolume(raw)
	q.Parameters = map[string]string{callmeta.ParameterModeChange: "true"}
	r.want("stage a copy of an empty block volume", r.stage(r.volume(q), "cst", c), codes.FailedPrecondition)
}
