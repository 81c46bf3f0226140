//go:build kernel

package interop

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// lists returns the names of the pool's volumes and snapshots; lost snapshots
// have a mark.
func (g *group) lists() string {
	g.Helper()
	ctx := context.Background()
	volumes, err := g.pool.Volumes(ctx)
	g.ok(err)
	snapshots, err := g.pool.Snapshots(ctx)
	g.ok(err)
	var out []string
	for _, v := range volumes {
		out = append(out, v.LV)
	}
	for _, s := range snapshots {
		if s.Lost {
			s.LV += "(lost)"
		}
		out = append(out, s.Volume+"@"+s.LV)
	}
	return strings.Join(out, " ")
}

// listed waits until lists returns want. The pool reads the metadata every two
// seconds.
func (g *group) listed(after, want string) {
	g.Helper()
	got := ""
	for deadline := time.Now().Add(6 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if got = g.lists(); got == want {
			return
		}
	}
	g.Errorf("after %s, the pool lists %q, want %q", after, got, want)
}

// history makes an active volume with three snapshots. The first blocks of the
// snapshots have 0, 1 and 2, and that of the volume has 3.
func (g *group) history(name string) (path string) {
	g.Helper()
	ctx := context.Background()
	v, err := g.pool.CreateVolume(ctx, pool.VolumeSpec{Name: name, Size: 16 * size.MiB, Mode: pool.Block})
	g.ok(err)
	path, err = g.pool.Activate(ctx, v.LV)
	g.ok(err)
	g.write(path, 0, '0')
	for i := range 3 {
		_, err := g.pool.CreateSnapshot(ctx, fmt.Sprintf("%s-%d", name, i), v.LV)
		g.ok(err)
		g.write(path, 0, byte('1'+i))
	}
	return path
}

// withdraw removes frozen layers from the metadata, as vgcfgrestore of edited
// metadata can. LVM2's lvremove refuses to remove them.
func (g *group) withdraw(names ...string) {
	g.Helper()
	store, err := lvm2.OpenVG(context.Background(), lvm2.Host{}, g.name, g.disks)
	g.ok(err)
	lock, err := lvm2.Host{}.LockVG(context.Background(), g.name, lvm2.Exclusive)
	g.ok(err)
	vg, err := store.Read(context.Background())
	g.ok(err)
	vg = vg.Clone()
	for _, name := range names {
		g.ok(vg.Remove(vg.LV(name).ID))
	}
	g.ok(store.Commit(context.Background(), vg))
	g.ok(errors.Join(store.Close(), lock.Unlock()))
}

// TestRemoved_byLVM2Commands: after LVM2's commands remove volumes and snapshots below
// an open pool, everything that reads through them is reported lost, and a later
// snapshot does not hide the loss.
func TestRemoved_byLVM2Commands(t *testing.T) {
	ctx := context.Background()
	g := newGroup(t, 1)
	p := g.open()
	newest, middle, oldest := g.history("a"), g.history("b"), g.history("c")
	g.history("d")
	g.listed("creation", "a b c d a@a-0 a@a-1 a@a-2 b@b-0 b@b-1 b@b-2 c@c-0 c@c-1 c@c-2 d@d-0 d@d-1 d@d-2")

	g.lvm("lvremove", "-q", "-y", g.name+"/a-2") // the live layer of an active volume
	if _, complaints := run("lvremove", "-q", "-y", g.name+"/b-1"); !strings.Contains(complaints, "locked") {
		t.Errorf("lvremove of a frozen layer: %q", complaints)
	}
	g.withdraw("b-1", "c-0")
	left := "a b c d a@a-0(lost) a@a-1(lost) b@b-0(lost) b@b-2 c@c-1 c@c-2 d@d-0 d@d-1 d@d-2"
	g.listed("lvremove of snapshots", left)
	g.write(newest, 1, 'x')

	for _, lost := range []string{"a-0", "a-1", "b-0"} {
		_, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "r-" + lost, Mode: pool.Block, Source: pool.Source{Kind: pool.FromSnapshot, LV: lost}})
		if !errors.Is(err, pool.ErrLost) {
			t.Errorf("restoring %s: %v, want %v", lost, err, pool.ErrLost)
		}
	}
	for _, name := range []string{"a", "b", "c"} {
		_, err := p.CreateSnapshot(ctx, name+"-3", name)
		g.ok(err)
	}
	g.write(newest, 0, '4')
	g.write(middle, 0, '4')
	g.write(oldest, 0, '4')
	left = strings.NewReplacer(" b@b-0", " a@a-3 b@b-0", " c@c-1", " b@b-3 c@c-1", " d@d-0", " c@c-3 d@d-0").Replace(left)
	g.listed("new snapshots", left)
	content := func(when string) {
		t.Helper()
		for snapshot, want := range map[string]string{"a-3": "3x.", "b-2": "2..", "b-3": "3..", "c-1": "1..", "c-2": "2..", "c-3": "3..", "d-0": "0.."} {
			if snapshot == "d-0" && when != "before" {
				continue
			}
			if got := g.restored(snapshot, 3); got != want {
				t.Errorf("%s: snapshot %s has %q, want %q", when, snapshot, got, want)
			}
		}
	}
	content("before")

	// LVM2 removes a volume with its live layer; the frozen layers stay.
	g.ok(p.Deactivate(ctx, "d"))
	g.lvm("lvremove", "-q", "-y", g.name+"/d")
	left, _, _ = strings.Cut(left, " d@d-0")
	left = strings.Replace(left, "a b c d ", "a b c ", 1)
	g.listed("lvremove of a volume", left)
	if _, err := p.Volume(ctx, "d"); !errors.Is(err, pool.ErrNotFound) {
		t.Errorf("the removed volume: %v", err)
	}
	g.ok(p.DeleteVolume(ctx, "d"))
	g.ok(p.DeleteSnapshot(ctx, "d-0"))
	if bad := p.PoolHealth(ctx); len(bad) == 0 {
		t.Error("layers without a volume are not reported")
	}
	g.vgck("lvremove while the pool was open")

	// A pool that is opened again agrees with what it finds.
	g.settled()
	devices := g.devices()
	g.close()
	p = g.open()
	g.listed("opening again", left)
	content("opened again")
	g.settled() // trash has a device while it is wiped
	if got := g.devices(); !slices.Equal(got, devices) {
		t.Errorf("opening again changed the devices from %v to %v", devices, got)
	}
	for _, s := range []string{"a-0", "a-1", "a-3", "b-0", "b-2", "b-3", "c-1", "c-2", "c-3"} {
		g.ok(p.DeleteSnapshot(ctx, s))
	}
	for _, v := range []string{"a", "b", "c"} {
		g.ok(p.DeleteVolume(ctx, v))
	}
	g.settled()
	g.vgck("deleting the rest")
	if left := g.devices(); len(left) > 0 {
		t.Errorf("the devices %v are left", left)
	}
	// The layers that LVM2 left can be deleted as the pool's health message
	// says.
	g.lvm("lvchange", "-q", "--deltag", "dmsnap:role=layer", "--addtag", "dmsnap:role=trash", g.name+"/d-0", g.name+"/d-1")
	g.eventually("making layers trash", func() bool { return g.metadata().LV("d-0") == nil && len(g.metadata().LVs) == 0 })
	g.expect("removing what is left")
}

// TestRemoved_olderMetadataRestored: the pool follows a vgcfgrestore to the metadata
// from before it made another volume.
func TestRemoved_olderMetadataRestored(t *testing.T) {
	ctx := context.Background()
	g := newGroup(t, 2)
	p := g.open()
	g.history("v")
	g.ok(p.Deactivate(ctx, "v"))
	file := filepath.Join(t.TempDir(), "vg")
	g.lvm("vgcfgbackup", "-q", "-f", file, g.name)
	for i := range 3 {
		_, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: fmt.Sprintf("later%d", i), Size: 4 * size.MiB, Mode: pool.Block})
		g.ok(err)
	}
	g.ok(p.DeleteSnapshot(ctx, "v-0"))
	g.lvm("vgcfgrestore", "-q", "-f", file, g.name)
	g.listed("vgcfgrestore", "v v@v-0 v@v-1 v@v-2")
	_, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "later0", Size: 4 * size.MiB, Mode: pool.Block})
	g.ok(err)
	g.listed("creating the volume again", "later0 v v@v-0 v@v-1 v@v-2")
	if got := g.restored("v-1", 2) + g.restored("v-2", 2); got != "1.2." {
		t.Errorf("the snapshots have %s", got)
	}
	g.vgck("vgcfgrestore")
}
