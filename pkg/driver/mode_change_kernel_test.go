//go:build kernel

package driver

import (
	"os"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
)

// wiped stages a block volume, which is wiped first.
func (r *rig) wiped(volume, at string) {
	r.t.Helper()
	err := r.stage(volume, at, block(writer))
	for end := time.Now().Add(time.Minute); err != nil && time.Now().Before(end); err = r.stage(volume, at, block(writer)) {
		r.want("stage while it is wiped", err, codes.Aborted)
		time.Sleep(100 * time.Millisecond)
	}
	r.must("stage", err)
}

// The content that a pod wrote to a raw block volume is mounted only where the class allows
// it; a file system may be read as a block device. Neither shows what a former
// owner left.
func TestModeChange(t *testing.T) {
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
	r.wiped(volume, "raw")
	r.formerly(r.device(volume), filesystem.Ext4) // the tenant's own superblock
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

	// The other way the kernel mounts nothing.
	again, err := ask("again", raw, fromSnapshot(r.snapshot("of-files", files)), "")
	r.must("create", err)
	r.must("stage", r.stage(again, "st", raw))
	r.must("unstage", r.unstage(again, "st"))
	unwiped := r.volume(request("unwiped", 64, fs))
	r.fresh("a volume", unwiped, fs)
	refused("a file system on what was never wiped as a block device", raw, fromSnapshot(r.snapshot("of-unwiped", unwiped)), "true")
	r.must("unstage", r.unstage(volume, "raw"))
}
