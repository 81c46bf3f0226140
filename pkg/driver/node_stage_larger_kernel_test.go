//go:build kernel

package driver

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// slowRig returns a rig that hydrates so slowly that a restored volume stays a fork
// while a test checks it. hydrateFast ends that.
func slowRig(t *testing.T) *rig {
	t.Helper()
	r := rigOf(t, pool.Config{Name: "fast", VolumeGroup: "vgdriver", Devices: scratch(t), FirstStore: 64 * size.MiB, HydrationRate: size.MiB})
	t.Cleanup(r.hydrateFast)
	return r
}

func (r *rig) hydrateFast() {
	r.t.Helper()
	r.stop()
	r.configs[0].HydrationRate = 0
	r.start()
}

// hydrating reports whether a volume still reads through a snapshot.
func (r *rig) hydrating(volume string) bool {
	r.t.Helper()
	found, err := pool.Inspect(r.t.Context(), r.configs[0], pool.Options{})
	r.must("inspect", err)
	i, _ := handle.Parse(volume)
	for _, v := range found.Volumes {
		if v.LV == i.LV {
			return v.Hydration != nil
		}
	}
	r.t.Fatalf("no volume %s", volume)
	return false
}

func (r *rig) waitHydrated(volume string) {
	r.t.Helper()
	for end := time.Now().Add(2 * time.Minute); r.hydrating(volume); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("%s is not hydrated", volume)
		}
	}
}

// checkFilesystem checks an unmounted device with the file system's own tool.
func (r *rig) checkFilesystem(fs, device string) {
	r.t.Helper()
	command := map[string]string{
		filesystem.Ext4: "e2fsck -fn", filesystem.XFS: "xfs_repair -n", filesystem.Btrfs: "btrfs check --readonly",
	}[fs]
	args := append(strings.Fields(command), device)
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		r.t.Errorf("%v: %v: %s", args, err, out)
	}
}

// The file system of a restore to a larger size grows at the stage, beside its
// mounted source and during hydration. The same holds for a restore of the
// restore. All bytes are correct during and after hydration.
func TestStage_restoredLarger(t *testing.T) {
	for _, fs := range []string{filesystem.Ext4, filesystem.XFS, filesystem.Btrfs} {
		t.Run(fs, func(t *testing.T) {
			r := slowRig(t)
			c := mount(writer, fs)
			least := max(int64(filesystem.MinimumSize(fs))>>20, 64) + 4 // so that a test can request less
			volume := r.volume(request("origin", least, c))
			r.must("stage", r.stage(volume, "st", c))
			data := make([]byte, 24<<20)
			rand.NewChaCha8([32]byte{1}).Read(data)
			r.must("write", os.WriteFile(filepath.Join(r.path("st"), "data"), data, 0o600))
			r.write("st", "as it was")
			snapshot := r.snapshot("snapshot", volume)
			r.write("st", "as it is")
			r.must("write", os.WriteFile(filepath.Join(r.path("st"), "data"), bytes.Repeat([]byte{7}, len(data)), 0o600))
			same := func(at string) {
				t.Helper()
				got, err := os.ReadFile(filepath.Join(r.path(at), "data"))
				if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
					t.Fatalf("data at %s: %d bytes, %v", at, len(got), err)
				}
			}

			smaller := request("smaller", least-4, c)
			smaller.VolumeContentSource = fromSnapshot(snapshot)
			_, err := r.CreateVolume(t.Context(), smaller)
			r.want("smaller", err, codes.OutOfRange)

			q := request("restored", least+96, c)
			q.VolumeContentSource = fromSnapshot(snapshot)
			restored := r.volume(q)
			r.must("stage restored", r.stage(restored, "rst", c))
			if !r.hydrating(restored) {
				t.Error("it was hydrated before it was staged: the test proves nothing")
			}
			r.read("rst", "as it was")
			same("rst")
			if got, was := r.total(restored, "rst"), r.total(volume, "st"); got < was+(80<<20) {
				t.Errorf("the file system has %d bytes, the source's has %d", got, was)
			}
			// More data than the source had room for.
			big := make([]byte, 40<<20)
			rand.NewChaCha8([32]byte{2}).Read(big)
			r.must("write", os.WriteFile(filepath.Join(r.path("rst"), "big"), big, 0o600))

			q = request("second", least+160, c)
			q.VolumeContentSource = fromSnapshot(r.snapshot("of restored", restored))
			second := r.volume(q)
			r.must("stage second", r.stage(second, "sst", c))
			same("sst")
			r.write("sst", "the second's")
			r.write("rst", "the first's")
			if got, was := r.total(second, "sst"), r.total(restored, "rst"); got < was+(48<<20) {
				t.Errorf("the second file system has %d bytes, the first restored one has %d", got, was)
			}
			r.must("unstage second", r.unstage(second, "sst"))
			r.must("stage second again", r.stage(second, "sst", c))
			if !r.hydrating(restored) || !r.hydrating(second) {
				t.Error("hydrated meanwhile: the test proves little")
			}
			r.hydrateFast()
			for volume, at := range map[string]string{restored: "rst", second: "sst"} {
				r.waitHydrated(volume)
				same(at)
				got, err := os.ReadFile(filepath.Join(r.path(at), "big"))
				if err != nil || !bytes.Equal(got, big) {
					t.Errorf("the data written at %s is wrong: %v", at, err)
				}
				r.must("unstage", r.unstage(volume, at))
				device := r.device(volume)
				r.checkFilesystem(fs, device)
				r.must("stage", r.stage(volume, at, c))
				same(at)
			}
			r.read("rst", "the first's")
			r.read("sst", "the second's")
			r.read("st", "as it is")
		})
	}
}

// A block volume with a file system on it can be restored, larger, as a volume
// with this file system, and vice versa.
func TestStage_restoredInOtherMode(t *testing.T) {
	r := slowRig(t)
	blk, fs := block(writer), mount(writer, filesystem.XFS)
	// Wipe all extents: extents that were never wiped must not become a raw device.
	filler := r.fillPool()
	r.must("delete the filler", r.remove(filler))
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		found, err := pool.Inspect(t.Context(), r.configs[0], pool.Options{})
		r.must("inspect", err)
		if found.Trash == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("not wiped")
		}
	}
	raw := r.volume(request("raw", 320, blk))
	r.must("format", filesystem.Format(t.Context(), r.device(raw), filesystem.XFS))
	empty := r.snapshot("snapshot", raw)

	q := request("as-files", 400, fs)
	q.VolumeContentSource = fromSnapshot(empty)
	allowed := map[string]string{callmeta.ParameterModeChange: "true"}
	q.Parameters = allowed
	files := r.volume(q)
	r.must("stage as files", r.stage(files, "fst", fs))
	if got := r.total(files, "fst"); got < 330<<20 { // without the log of 64 MiB
		t.Errorf("the file system was not grown: %d bytes", got)
	}
	r.write("fst", "content")

	other := request("other", 400, mount(writer, filesystem.Ext4))
	other.VolumeContentSource, other.Parameters = fromSnapshot(empty), allowed
	wrong := r.volume(other)
	r.want("stage as another file system", r.stage(wrong, "wst", mount(writer, filesystem.Ext4)), codes.FailedPrecondition)
	r.must("delete", r.remove(wrong))

	q = request("as-block", 480, blk)
	q.VolumeContentSource = fromSnapshot(r.snapshot("of files", files))
	back := r.volume(q)
	r.must("stage as block", r.stage(back, "bst", blk))
	r.want("stage as files what was made as block", r.stage(back, "bst2", fs), codes.FailedPrecondition)
	if got := r.total(back, "bst"); got != 480<<20 {
		t.Errorf("the block volume has %d bytes", got)
	}
	found, err := filesystem.Probe(t.Context(), r.device(back))
	if err != nil || found != filesystem.XFS {
		t.Errorf("on it is %q, %v", found, err)
	}
	r.must("unstage", r.unstage(back, "bst"))
	r.must("unstage", r.unstage(files, "fst"))
}
