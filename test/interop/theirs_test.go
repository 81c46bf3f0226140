//go:build kernel

package interop

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestTheirs_snapshotByLVM2: LVM2's snapshots of the driver's volumes stay whole: the
// driver neither writes to such a volume past them nor removes their devices, and it
// refuses what it cannot do.
func TestTheirs_snapshotByLVM2(t *testing.T) {
	ctx := context.Background()
	g := newGroup(t, 1)
	p := g.open()
	v, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "bare", Size: 16 * size.MiB, Mode: pool.Block})
	g.ok(err)
	bare, err := p.Activate(ctx, v.LV)
	g.ok(err)
	g.write(bare, 0, '0')
	both := g.history("both") // also has the driver's snapshots
	g.lvm("lvcreate", "-q", "-s", "-L", "8M", "-n", "theirs", g.name+"/bare")
	g.lvm("lvcreate", "-q", "-s", "-L", "8M", "-n", "theirs2", g.name+"/both")
	theirs, theirs2 := g.dm.Node(g.name+"-theirs"), g.dm.Node(g.name+"-theirs2")
	g.write(bare, 0, '1')
	g.write(both, 0, '4')

	intact := func(after string) {
		t.Helper()
		if got := g.first(theirs, 2) + g.first(theirs2, 2); got != "0.3." {
			t.Errorf("after %s, LVM2's snapshots have %s", after, got)
		}
	}
	intact("writing")
	g.eventually("LVM2's snapshots", func() bool {
		_, err := p.CreateSnapshot(ctx, "mine", "bare")
		return errors.Is(err, pool.ErrPrecondition)
	})
	// The driver may still commit what it learned about the last cuts.
	before := g.metadata().Seqno
	for range 10 {
		time.Sleep(2500 * time.Millisecond)
		now := g.metadata().Seqno
		if now == before {
			break
		}
		before = now
	}
	tables := g.tables()
	for _, lv := range []string{"bare", "both"} {
		if path, err := p.Activate(ctx, lv); err != nil || path != g.dm.Node(g.name+"-"+lv) {
			t.Errorf("Activate of the active %s: %s, %v", lv, path, err)
		}
		_, err = p.CreateSnapshot(ctx, "mine", lv)
		_, err2 := p.ExpandVolume(ctx, lv, 32*size.MiB, 0)
		_, err3 := p.CreateVolume(ctx, pool.VolumeSpec{Name: "clone", Mode: pool.Block, Source: pool.Source{Kind: pool.FromVolume, LV: lv}})
		for _, err := range []error{err, err2, err3, p.DeleteVolume(ctx, lv)} {
			if !errors.Is(err, pool.ErrPrecondition) || !strings.Contains(err.Error(), "LVM2") {
				t.Errorf("an operation on %s, which has a snapshot of LVM2's: %v", lv, err)
			}
		}
		g.ok(p.Deactivate(ctx, lv))
	}
	g.sameTables("refused operations", g.tables(), tables)
	g.close()
	p = g.open()
	g.sameTables("opening the pool", g.tables(), tables)
	if now := g.metadata().Seqno; now != before {
		t.Errorf("refused operations raised seqno %d to %d", before, now)
	}
	g.write(bare, 1, '2')
	g.write(both, 1, '5')
	intact("opening the pool")

	for _, s := range []string{"both-0", "both-1", "both-2"} {
		g.ok(p.DeleteSnapshot(ctx, s))
	}
	g.settled()
	g.write(both, 2, '6')
	intact("deleting the driver's snapshots")
	g.vgck("deleting the driver's snapshots")

	// The driver refuses to activate an inactive volume, which would become
	// active without LVM2's snapshot.
	g.lvm("vgchange", "-q", "-an", g.name)
	for _, lv := range []string{"bare", "both"} {
		if _, err := p.Activate(ctx, lv); !errors.Is(err, pool.ErrPrecondition) || !strings.Contains(err.Error(), "lvchange") {
			t.Errorf("Activate of the inactive %s: %v", lv, err)
		}
	}
	if left := g.devices(); len(left) > 0 {
		t.Errorf("the refused Activate left %v", left)
	}
	g.lvm("vgchange", "-q", "-ay", g.name)
	intact("LVM2's activation")

	// Without LVM2's snapshots everything works again.
	g.lvm("lvremove", "-q", "-y", g.name+"/theirs", g.name+"/theirs2")
	g.eventually("lvremove", func() bool {
		_, err := p.CreateSnapshot(ctx, "mine", "bare")
		return err == nil
	})
	g.write(bare, 0, '3')
	if got := g.restored("mine", 2); got != "12" {
		t.Errorf("the driver's snapshot has %s", got)
	}
	g.ok(p.DeleteSnapshot(ctx, "mine"))
	for _, lv := range []string{"bare", "both"} {
		g.ok(p.Deactivate(ctx, lv))
		g.ok(p.DeleteVolume(ctx, lv))
	}
	g.settled()
	g.expect("deleting everything")
	if left := g.devices(); len(left) > 0 {
		t.Errorf("the devices %v are left", left)
	}
}

// TestTheirs_refreshOfFrozenLayer: LVM2 refreshes a frozen layer, and so replaces its
// table by a plain one, while an unused restored volume is hydrated from the layer.
// The hydration does not take the blocks for the snapshot's content.
func TestTheirs_refreshOfFrozenLayer(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	g := newGroup(t, 1)
	p := g.open()
	v, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", Size: 256 * size.MiB, Mode: pool.Block})
	g.ok(err)
	path, err := p.Activate(ctx, v.LV)
	g.ok(err)
	const last = 256<<20/int(block) - 1
	for i, fill := range "0123" {
		if i > 0 {
			_, err = p.CreateSnapshot(ctx, "s-"+string('0'+rune(i)), v.LV)
			g.ok(err)
		}
		g.write(path, 0, byte(fill))
		g.write(path, last, byte(fill))
	}
	active := g.tables()
	spec := pool.VolumeSpec{Name: "copy", Mode: pool.Block, Source: pool.Source{Kind: pool.FromSnapshot, LV: "s-1"}}
	_, err = p.CreateVolume(ctx, spec)
	g.ok(err)
	window := g.name + "-copy-window0"
	for info, err := g.dm.Info(window); err != nil || !info.Live; info, err = g.dm.Info(window) {
		g.ok(ctx.Err())
		time.Sleep(time.Millisecond)
	}
	g.ok(g.dm.Suspend(ctx, window, dm.SuspendOptions{})) // so that hydration is certainly running
	// A convergence of the driver may bring the layer's table back before the test sees it.
	for tries := 5; ; tries-- {
		g.lvm("lvchange", "-q", "--refresh", g.name+"/s-1")
		table := g.tables()[g.name+"-s--1"]
		if strings.Contains(table, " linear ") {
			break
		}
		if tries == 0 {
			t.Fatalf("after lvchange --refresh, the frozen layer's table is %q, want linear: the test proves nothing", table)
		}
	}
	g.ok(g.dm.Resume(window, 0))
	g.settled()
	to, err := p.Activate(ctx, "copy")
	g.ok(err)
	content := g.first(to, last+1)
	if got := content[:1] + content[last:]; got != "00" {
		t.Errorf("the first and last block of the volume restored from the oldest snapshot have %s, want 00", got)
	}
	g.ok(p.Deactivate(ctx, "copy"))
	g.sameTables("lvchange --refresh", g.tables(), active)
	g.vgck("lvchange --refresh")
}

// TestTheirs_mergeByLVM2: while LVM2 merges the newest snapshot into its volume, the
// driver leaves the volume alone. Older snapshots are reported lost, because they read
// through the merged one.
func TestTheirs_mergeByLVM2(t *testing.T) {
	ctx := context.Background()
	g := newGroup(t, 1)
	p := g.open()
	path := g.history("v")
	g.ok(p.Deactivate(ctx, "v"))
	if _, complaints := run("lvconvert", "-q", "--merge", g.name+"/v-2"); complaints != "" {
		t.Fatalf("lvconvert --merge: %s", complaints)
	}
	g.eventually("the volume is LVM2's", func() bool {
		_, err := p.Activate(ctx, "v")
		return errors.Is(err, pool.ErrPrecondition)
	})
	for _, err := range []error{p.DeleteVolume(ctx, "v"), p.DeleteSnapshot(ctx, "v-2"), second(p.CreateSnapshot(ctx, "v-3", "v")), second(p.ExpandVolume(ctx, "v", 32*size.MiB, 0))} {
		if !errors.Is(err, pool.ErrPrecondition) {
			t.Errorf("while LVM2 has a merge to do: %v, want it refused", err)
		}
	}
	if left := g.devices(); len(left) > 0 {
		t.Errorf("refused operations left the devices %v", left)
	}
	g.vgck("lvconvert --merge")
	// The merge runs while the volume is active, and LVM2 ends it.
	g.lvm("lvchange", "-q", "-ay", g.name+"/v")
	for deadline := time.Now().Add(30 * time.Second); g.metadata().LV("v-2") != nil; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("LVM2 did not end the merge")
		}
		if _, err := p.Activate(ctx, "v"); err != nil {
			t.Errorf("Activate of the active volume while it is merged: %v", err)
		}
	}
	g.listed("the merge", "v v@v-0(lost) v@v-1(lost)")
	path2, err := p.Activate(ctx, "v")
	g.ok(err)
	if got := g.first(path, 2); got != "2." || path2 != path {
		t.Errorf("the merged volume %s has %q", path2, got)
	}
	_, err = p.CreateSnapshot(ctx, "v-3", "v")
	g.ok(err)
	g.write(path, 0, '9')
	if got := g.restored("v-3", 2); got != "2." {
		t.Errorf("a snapshot after the merge has %q", got)
	}
	g.listed("a new snapshot", "v v@v-0(lost) v@v-1(lost) v@v-3")
	for _, s := range []string{"v-0", "v-1", "v-3"} {
		g.ok(p.DeleteSnapshot(ctx, s))
	}
	g.ok(p.Deactivate(ctx, "v"))
	g.ok(p.DeleteVolume(ctx, "v"))
	g.settled()
	g.expect("deleting everything")
}

func second[T any](_ T, err error) error { return err }
