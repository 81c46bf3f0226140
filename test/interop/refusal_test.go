//go:build kernel

package interop

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// headers returns the first MiB of every disk, which has the label and the
// metadata area.
func (g *group) headers() [][]byte {
	g.Helper()
	buffer := buffers.Get().(*buffer)
	defer buffers.Put(buffer)
	var out [][]byte
	for _, d := range g.disks {
		f, err := os.OpenFile(d, os.O_RDONLY|unix.O_DIRECT, 0)
		g.ok(err)
		_, err = f.ReadAt(buffer[:size.MiB], 0)
		g.ok(err)
		g.ok(f.Close())
		out = append(out, bytes.Clone(buffer[:size.MiB]))
	}
	return out
}

// refused checks that err is ErrUnavailable, with a message that has the given
// words.
func (g *group) refused(what string, err error, words ...string) {
	g.Helper()
	if !errors.Is(err, pool.ErrUnavailable) {
		g.Errorf("%s: %v, want %v", what, err, pool.ErrUnavailable)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			g.Errorf("%s: the message %q does not say %q", what, err, w)
		}
	}
}

// refusesAll checks that the pool cannot be opened, that the pool that is
// already open refuses every change, and that no byte of metadata changes.
func (g *group) refusesAll(words ...string) {
	g.Helper()
	ctx := context.Background()
	before, devices := g.headers(), g.devices()
	g.eventually("the group cannot be used", func() bool {
		_, err := g.pool.Volumes(ctx)
		return err != nil
	})
	_, err := g.pool.Volumes(ctx)
	g.refused("Volumes", err, words...)
	_, err = g.pool.CreateVolume(ctx, pool.VolumeSpec{Name: "new", Size: 4 * size.MiB, Mode: pool.Block})
	g.refused("CreateVolume", err, words...)
	_, err = g.pool.CreateSnapshot(ctx, "new", "vol")
	g.refused("CreateSnapshot", err, words...)
	_, err = g.pool.ExpandVolume(ctx, "vol", 64*size.MiB, 0)
	g.refused("ExpandVolume", err, words...)
	_, err = g.pool.Activate(ctx, "vol")
	g.refused("Activate", err, words...)
	g.refused("Deactivate", g.pool.Deactivate(ctx, "vol"), words...)
	g.refused("DeleteSnapshot", g.pool.DeleteSnapshot(ctx, "snap"), words...)
	g.refused("DeleteVolume", g.pool.DeleteVolume(ctx, "vol"), words...)
	if bad := g.pool.PoolHealth(ctx); len(bad) != 1 || bad[0].Severity != pool.Inaccessible {
		g.Errorf("the pool's health is %v", bad)
	}
	g.close()
	for _, create := range []bool{false, true} {
		g.config.Create = create
		p, err := g.tryOpen(pool.Options{})
		if err == nil {
			p.Close()
		}
		g.refused("opening the pool", err, words...)
	}
	g.config.Create = false
	for i, now := range g.headers() {
		if !bytes.Equal(now, before[i]) {
			g.Errorf("a refused operation changed the metadata of %s", g.disks[i])
		}
	}
	if now := g.devices(); strings.Join(now, " ") != strings.Join(devices, " ") {
		g.Errorf("a refused operation changed the devices to %v from %v", now, devices)
	}
}

// stock puts a volume with a snapshot into the group.
func (g *group) stock() {
	g.Helper()
	ctx := context.Background()
	_, err := g.open().CreateVolume(ctx, pool.VolumeSpec{Name: "vol", Size: 16 * size.MiB, Mode: pool.Block})
	g.ok(err)
	_, err = g.pool.CreateSnapshot(ctx, "snap", "vol")
	g.ok(err)
}

// works checks that the pool can be opened and used again, and has lost
// nothing.
func (g *group) works(o pool.Options) {
	g.Helper()
	p, err := g.tryOpen(o)
	g.ok(err)
	g.pool = p
	g.listed("using it again", "vol vol@snap")
	_, err = p.CreateVolume(context.Background(), pool.VolumeSpec{Name: "new", Size: 4 * size.MiB, Mode: pool.Block})
	g.ok(err)
}

// TestRefusal_exportedGroup: the pool refuses an exported group.
func TestRefusal_exportedGroup(t *testing.T) {
	g := newGroup(t, 2)
	g.stock()
	g.lvm("vgexport", "-q", g.name)
	g.refusesAll("exported", "vgimport "+g.name)
	g.lvm("vgimport", "-q", g.name)
	g.works(pool.Options{})
}

// TestRefusal_foreignSystemID: the pool refuses a group of another system.
func TestRefusal_foreignSystemID(t *testing.T) {
	g := newGroup(t, 2)
	g.stock()
	const here = `global{system_id_source="lvmlocal"} local{system_id="elsewhere"}`
	if _, complaints := run("vgchange", "-q", "-y", "--systemid", "elsewhere", "--config", here, g.name); !benign(complaints) {
		t.Fatal(complaints)
	}
	g.refusesAll("system id", `"elsewhere"`, "vgchange --systemid")
	// The host with that system id may use the group, and its next commit
	// writes its name.
	g.works(pool.Options{LVM: lvm2.Host{SystemID: "elsewhere"}})
	g.lvm("vgck", "--config", here, g.name)
}

// TestRefusal_lockType: the pool refuses a group with shared locks.
func TestRefusal_lockType(t *testing.T) {
	g := newGroup(t, 2)
	g.stock()
	// LVM2 makes such a group only where lvmlockd runs, so the test edits the
	// group's text.
	file := filepath.Join(t.TempDir(), "vg")
	restore := func(with string) {
		t.Helper()
		g.lvm("vgcfgbackup", "-q", "-f", file, g.name)
		text, err := os.ReadFile(file)
		g.ok(err)
		edited := strings.Replace(string(text), "\textent_size", with+"\textent_size", 1)
		g.ok(os.WriteFile(file, []byte(edited), 0o600))
		g.lvm("vgcfgrestore", "-q", "-f", file, g.name)
	}
	restore("\tlock_type = \"sanlock\"\n\tlock_args = \"1.0.0:lvmlock\"\n")
	g.refusesAll("lock type", "sanlock", "--lock-type none")
}

// TestRefusal_missingPV: while one of two disks is missing, the group can be read,
// whole volumes can be used, and nothing changes. The disk goes away below an open
// pool, and before the pool is opened.
func TestRefusal_missingPV(t *testing.T) {
	ctx := context.Background()
	g := newGroup(t, 1)
	// The second physical volume is a device whose table can be swapped. The
	// device does not begin where the disk begins: otherwise the disk itself
	// would be the physical volume.
	const second, begin, length = "interop-second", 4096, 256 << 11
	under, err := dm.DeviceOf(g.disks[1])
	g.ok(err)
	good := dm.Table{{Length: length, Target: dm.Linear{Device: under, Offset: begin}}}
	bad := dm.Table{{Length: length, Target: dm.ErrorTarget{}}}
	attach := func(table dm.Table) {
		t.Helper()
		if _, err := g.dm.Info(second); err != nil {
			d, err := g.dm.Create(second, "")
			g.ok(err)
			g.ok(g.dm.Load(second, table, false))
			g.ok(g.dm.Resume(second, 0))
			_, err = g.dm.EnsureNode(ctx, second, d.Device)
			g.ok(err)
			return
		}
		g.ok(g.dm.Load(second, table, false))
		g.ok(g.dm.Resume(second, 0))
	}
	detach := func() {
		if _, err := g.dm.Info(second); err == nil {
			g.ok(g.dm.Remove(second, 0))
			g.ok(g.dm.RemoveNode(second))
		}
	}
	t.Cleanup(func() { // runs before the group's cleanup
		g.close()
		for _, name := range g.devices() {
			g.dm.Remove(name, 0)
		}
		detach()
	})
	attach(good)
	g.lvm("vgextend", "-q", g.name, g.dm.Node(second))
	p := g.open()
	_, err = p.CreateVolume(ctx, pool.VolumeSpec{Name: "vol", Size: 16 * size.MiB, Mode: pool.Block})
	g.ok(err)
	here, err := p.Activate(ctx, "vol")
	g.ok(err)
	g.write(here, 0, 'v')
	_, err = p.CreateVolume(ctx, pool.VolumeSpec{Name: "fill", Size: 980 * size.MiB, Mode: pool.Filesystem, FSType: "ext4"})
	g.ok(err)
	_, err = p.CreateVolume(ctx, pool.VolumeSpec{Name: "far", Size: 128 * size.MiB, Mode: pool.Filesystem, FSType: "ext4"})
	g.ok(err)

	refuses := func(when string, words ...string) {
		t.Helper()
		before := g.headers()
		_, err := g.pool.CreateVolume(ctx, pool.VolumeSpec{Name: "new", Size: 4 * size.MiB, Mode: pool.Block})
		g.refused(when+" CreateVolume", err, words...)
		_, err = g.pool.CreateSnapshot(ctx, "new", "vol")
		g.refused(when+" CreateSnapshot", err, words...)
		_, err = g.pool.ExpandVolume(ctx, "vol", 64*size.MiB, 0)
		g.refused(when+" ExpandVolume", err, words...)
		g.refused(when+" DeleteVolume", g.pool.DeleteVolume(ctx, "far"), words...)
		_, err = g.pool.Activate(ctx, "far")
		g.refused(when+" Activate of a volume on the missing disk", err, words...)
		if _, err := g.pool.Activate(ctx, "vol"); err != nil {
			t.Errorf("%s Activate of a volume on the other disk: %v", when, err)
		}
		if got := g.first(here, 2); got != "v." {
			t.Errorf("%s: the volume has %s", when, got)
		}
		for lv, want := range map[string]int{"vol": 0, "far": 1} {
			if conditions, err := g.pool.Health(ctx, lv); err != nil || len(conditions) != want {
				t.Errorf("%s: %s is in the condition %v, %v", when, lv, conditions, err)
			}
		}
		if conditions := g.pool.PoolHealth(ctx); len(conditions) == 0 || conditions[0].Reason != "DeviceMissing" {
			t.Errorf("%s: the pool is in the condition %v", when, conditions)
		}
		for i, now := range g.headers() {
			if !bytes.Equal(now, before[i]) {
				t.Errorf("%s: a refused operation changed the metadata of %s", when, g.disks[i])
			}
		}
	}
	attach(bad)
	refuses("while the pool is open", "missing")
	g.close()
	g.open()
	refuses("opened with a disk that fails", "missing")
	g.close()
	detach()
	g.open()
	refuses("opened without a disk", "missing", "vgreduce")

	// The disk is back: everything works, and the open pool notices.
	attach(good)
	g.eventually("the disk", func() bool { return len(g.pool.PoolHealth(ctx)) == 0 })
	if _, err := g.pool.Activate(ctx, "far"); err != nil {
		t.Error(err)
	}
	g.ok(g.pool.Deactivate(ctx, "far"))
	g.ok(g.pool.DeleteVolume(ctx, "far"))
	g.settled()
	g.vgck("the disk came back")
}
