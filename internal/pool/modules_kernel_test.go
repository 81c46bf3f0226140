//go:build kernel

package pool

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// withoutModule unloads a module, and prevents the kernel from loading it until back is
// called.
func withoutModule(t *testing.T, name, target string) (back func()) {
	t.Helper()
	const modprobe = "/proc/sys/kernel/modprobe"
	before, err := os.ReadFile(modprobe)
	ok(t, err)
	ok(t, os.WriteFile(modprobe, []byte("/bin/false"), 0))
	back = func() {
		ok(t, os.WriteFile(modprobe, before, 0))
		client := must(dm.Open())(t)
		defer client.Close()
		must(client.TargetVersion(target))(t)
	}
	t.Cleanup(back)
	if err := unix.DeleteModule(name, 0); errors.Is(err, unix.ENOENT) {
		t.Skipf("this kernel has %s built in", name)
	} else {
		ok(t, err)
	}
	return back
}

// TestModules_withoutMirror: without dm-mirror, a pool works and restored volumes are
// usable. Conditions name the missing module and the remedy. Hydration begins
// automatically once the module is loaded.
func TestModules_withoutMirror(t *testing.T) {
	ctx := context.Background()
	back := withoutModule(t, "dm_mirror", "mirror")
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 16 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	model := make(content, 16*size.MiB)
	model.scribble(t, rand.New(rand.NewPCG(3, 4)), path, 50)
	s := must(p.CreateSnapshot(ctx, "s", v.LV))(t)
	f := must(p.CreateVolume(ctx, VolumeSpec{Name: "restore", Mode: Block, Source: Source{Kind: FromSnapshot, LV: s.LV}}))(t)
	model.compare(t, must(p.Activate(ctx, f.LV))(t), "the restore")
	named := func(conditions []Condition, reason string) bool {
		return slices.ContainsFunc(conditions, func(c Condition) bool { return c.Reason == reason && strings.Contains(c.Message, "modprobe dm-mirror") })
	}
	for end := time.Now().Add(20 * time.Second); !named(must(p.Health(ctx, f.LV))(t), "HydrationFailing"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the restore's health does not name the module: %+v", must(p.Health(ctx, f.LV))(t))
		}
	}
	if all := p.PoolHealth(ctx); !named(all, "ModuleMissing") {
		t.Errorf("the pool's health does not name the module: %+v", all)
	}
	found := must(Verify(ctx, p.config, Options{}))(t).Told
	for _, want := range []string{"ModuleMissing " + p.vgName, "HydrationFailing " + p.vgName + "/" + f.LV} {
		if !slices.ContainsFunc(found, func(f Finding) bool {
			return f.Reason+" "+f.Where == want && strings.Contains(f.Do, "modprobe dm-mirror")
		}) {
			t.Errorf("check does not find %s: %+v", want, found)
		}
	}
	back()
	waitHydrated(t, p, f.LV)
	model.compare(t, must(p.Activate(ctx, f.LV))(t), "the copied restore")
	for end := time.Now().Add(20 * time.Second); len(p.Concerns(ctx)) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("with the module, the concerns are still %+v", p.Concerns(ctx))
		}
	}
}

// TestModules_withoutSnapshot: without dm-snapshot no pool is opened, and the error says
// what to do.
func TestModules_withoutSnapshot(t *testing.T) {
	withoutModule(t, "dm_snapshot", "snapshot")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	p, err := Open(ctx, Config{Name: "pool", VolumeGroup: "vgnone", Devices: testDisks(t)[:1], Create: true}, Options{})
	if err == nil {
		p.Close()
	}
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "modprobe dm-snapshot") {
		t.Errorf("Open returned %v", err)
	}
}

// TestHasFilesystem_missing: hasFilesystem reports false for a file system that the
// kernel lacks. A condition names the missing file system of a volume.
func TestHasFilesystem_missing(t *testing.T) {
	for fs, want := range map[string]bool{"ext4": true, "proc": true, "nonesuch": false, "ext": false} {
		if got := must(hasFilesystem(fs))(t); got != want {
			t.Errorf("hasFilesystem(%s) is %t", fs, got)
		}
	}
	p := testPool(t, nil)
	lacking := &view{View: &catalog.View{}}
	for id, o := range map[lvm2.ID]*catalog.Volume{"a": {FS: "ext4"}, "b": {FS: "nonesuch"}, "c": {FS: "none", Deleted: true}} {
		lacking.Volumes.Set(id, o)
	}
	if all := p.moduleConditions(lacking); len(all) != 1 || !strings.Contains(all[0].Message, "modprobe nonesuch") {
		t.Errorf("the conditions are %+v, want one for nonesuch", all)
	}
}
