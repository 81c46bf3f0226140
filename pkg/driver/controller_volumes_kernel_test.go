//go:build kernel

package driver

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
)

// stageWiped stages a block volume, and retries while the driver wipes it.
func (r *rig) stageWiped(volume, at string) {
	r.t.Helper()
	err := r.stage(volume, at, block(writer))
	for end := time.Now().Add(time.Minute); err != nil && time.Now().Before(end); err = r.stage(volume, at, block(writer)) {
		r.want("stage while it is wiped", err, codes.Aborted)
		time.Sleep(100 * time.Millisecond)
	}
	r.must("stage", err)
}

// The content of a raw block volume is mounted only if the class allows it, and
// a file system can be read as a block device. Neither shows the content of a
// former owner.
func TestCreateVolume_modeChange(t *testing.T) {
	r := formerGroup(t, filesystem.Ext4, 64)
	fs, raw := mount(writer, filesystem.Ext4), block(writer)
	ask := func(name string, c *csi.VolumeCapability, source *csi.VolumeContentSource, allow string) (string, error) {
		q := from(name, 64, c, source)
		if allow != "" {
			q.Parameters = map[string]string{callmeta.ParameterModeChange: allow}
		}
		v, err := r.CreateVolume(t.Context(), q)
		return v.GetVolume().GetVolumeId(), err
	}
	refused := func(what string, c *csi.VolumeCapability, source *csi.VolumeContentSource, allow string) {
		t.Helper()
		_, err := ask("refused", c, source, allow)
		r.want(what, err, codes.FailedPrecondition)
	}

	volume := r.volume(request("origin", 64, raw))
	never := r.snapshot("never-staged", volume)
	refused("what was never wiped", fs, fromSnapshot(never), "true")
	r.stageWiped(volume, "raw")
	r.makeSecret(r.device(volume), filesystem.Ext4) // the tenant's own superblock
	s := r.snapshot("s", volume)
	for _, source := range []*csi.VolumeContentSource{fromSnapshot(s), fromVolume(volume)} {
		refused("a block volume's content without a word", fs, source, "")
		refused("a block volume's content", fs, source, "false")
		refused("a block volume's content for readers", mount(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, filesystem.Ext4), source, "")
	}
	_, err := ask("refused", fs, fromSnapshot(s), "yes")
	r.want("neither true nor false", err, codes.InvalidArgument)
	r.want("the volume itself as a file system", r.stage(volume, "st", fs), codes.FailedPrecondition)
	files, err := ask("files", fs, fromSnapshot(s), "true")
	r.must("create", err)
	r.must("stage", r.stage(files, "st", fs))
	if _, err := os.Stat(r.path("st/secret")); err != nil {
		t.Errorf("what the class allows: %v", err)
	}
	r.must("unstage", r.unstage(files, "st"))

	// In the other direction the kernel mounts nothing.
	again, err := ask("again", raw, fromSnapshot(r.snapshot("of-files", files)), "")
	r.must("create", err)
	r.must("stage", r.stage(again, "st", raw))
	r.must("unstage", r.unstage(again, "st"))
	unwiped := r.volume(request("unwiped", 64, fs))
	r.wantFresh("a volume", unwiped, fs)
	refused("a file system on what was never wiped as a block device", raw, fromSnapshot(r.snapshot("of-unwiped", unwiped)), "true")
	r.must("unstage", r.unstage(volume, "raw"))
}

// A volume for writers and readers can be written. Only a volume for readers
// alone needs a source.
func TestCreateVolume_readersAndWriters(t *testing.T) {
	r := newRig(t)
	fs, shared := mount(writer, filesystem.Ext4), mount(manyReaders, filesystem.Ext4)
	ask := func(name string, c ...*csi.VolumeCapability) *csi.CreateVolumeRequest {
		q := request(name, 64, c[0])
		q.VolumeCapabilities = c
		return q
	}
	for what, list := range map[string][]*csi.VolumeCapability{"written, read": {fs, shared}, "read, written": {shared, fs}} {
		volume := r.volume(ask("v", list...))
		if again := r.volume(ask("v", list...)); again != volume {
			t.Errorf("%s: %s, again %s", what, volume, again)
		}
		a, err := r.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{VolumeId: volume, VolumeCapabilities: list})
		if err != nil || a.GetConfirmed() == nil {
			t.Errorf("%s: %v, %v", what, a, err)
		}
		r.must("stage", r.stage(volume, "st", fs))
		r.write("st", what)
		r.must("unstage", r.unstage(volume, "st"))
		r.must("stage for readers", r.stage(volume, "st", shared))
		r.read("st", what)
		r.must("unstage", r.unstage(volume, "st"))

		// A volume with a source can also be written.
		q := ask("copy", list...)
		q.VolumeContentSource = fromVolume(volume)
		copied := r.volume(q)
		r.must("stage", r.stage(copied, "st", fs))
		r.read("st", what)
		r.write("st", "the copy's")
		r.must("unstage", r.unstage(copied, "st"))
		r.must("delete", r.remove(copied))
		r.must("delete", r.remove(volume))
	}
	for what, list := range map[string][]*csi.VolumeCapability{
		"readers": {shared}, "a reader": {mount(reader, filesystem.Ext4)}, "both": {shared, mount(reader, filesystem.Ext4)},
	} {
		_, err := r.CreateVolume(t.Context(), ask("nothing", list...))
		r.want(what, err, codes.InvalidArgument)
		c, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{VolumeCapabilities: list})
		if err != nil || c.GetAvailableCapacity() == 0 {
			t.Errorf("%s: %v, %v", what, c, err) // a volume with a source can be created
		}
	}
}

// A clone exists immediately, and concurrent and repeated requests create only
// one.
func TestCreateVolume_concurrentClone(t *testing.T) {
	r := newRig(t)
	q := request("copy", 640, block(writer))
	q.VolumeContentSource = fromVolume(r.volume(request("source", 640, block(writer))))
	// Some of several concurrent calls may be refused.
	results := make(chan error)
	for range 8 {
		go func() {
			_, err := r.CreateVolume(t.Context(), q)
			results <- err
		}()
	}
	count := map[codes.Code]int{}
	for range 8 {
		count[status.Code(<-results)]++
	}
	if count[codes.OK] == 0 || count[codes.Aborted] == 0 || count[codes.OK]+count[codes.Aborted] != 8 {
		t.Errorf("asked for at the same time: %v", count)
	}
	id := r.volume(q)
	list, err := r.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
	if err != nil || len(list.GetEntries()) != 2 || r.volume(q) != id {
		t.Errorf("after that: %v, %v", list, err)
	}
}

// A full pool refuses volumes and expansions, and still has room for some
// snapshots.
func TestCreateVolume_fullPool(t *testing.T) {
	r := newRig(t)
	var volumes []string
	for i := range 12 {
		volumes = append(volumes, r.volume(request(fmt.Sprint("v", i), 32, block(writer))))
	}
	c, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{})
	r.must("capacity", err)
	r.volume(request("rest", c.GetMaximumVolumeSize().GetValue()>>20, block(writer)))
	_, err = r.CreateVolume(t.Context(), request("more", 32, block(writer)))
	r.want("volume in a full pool", err, codes.ResourceExhausted)
	_, err = r.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
		VolumeId: volumes[0], CapacityRange: &csi.CapacityRange{RequiredBytes: 64 << 20},
	})
	r.want("expand in a full pool", err, codes.OutOfRange)
	// The reserve for snapshots is enough for some snapshots.
	cut := 0
	for _, v := range volumes {
		_, err = r.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: v, SourceVolumeId: v})
		if err != nil {
			break
		}
		cut++
	}
	r.want("snapshot in a full pool", err, codes.ResourceExhausted)
	if cut == 0 {
		t.Error("no snapshot found room in the reserve")
	}
}
