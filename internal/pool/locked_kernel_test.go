//go:build kernel

package pool

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2/lvm2test"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// lockedGroup makes a volume with two snapshots, a deleted volume with a snapshot, and
// an active fork, reader and transient volume. It returns the fork's device and content.
func lockedGroup(t *testing.T, p *Pool) (at string, model content) {
	t.Helper()
	ctx := context.Background()
	r := rand.New(rand.NewPCG(1, 2))
	base, model := snapped(t, p, r, "base", 64*size.MiB)
	f := restored(t, p, "base")
	at = must(p.Activate(ctx, f.LV))(t)
	model.scribble(t, r, at, 100)
	must(p.CreateSnapshot(ctx, "later", base.LV))(t) // freezes snapbase
	must(p.CreateSnapshot(ctx, "ofFork", f.LV))(t)
	for _, spec := range []VolumeSpec{{Name: "reader", ReadOnly: true}, {Name: "scratch", Transient: true}} {
		spec.Mode, spec.Source = Block, Source{Kind: FromSnapshot, LV: "snapbase"}
		must(p.Activate(ctx, must(p.CreateVolume(ctx, spec))(t).LV))(t)
	}
	gone, _ := snapped(t, p, r, "gone", 8*size.MiB)
	ok(t, p.DeleteVolume(ctx, gone.LV))
	return at, model
}

// TestHandOff_lvm2Refuses: lvm2's commands refuse to change logical volumes that are
// handed off, and still work on the rest of the group.
func TestHandOff_lvm2Refuses(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.HydrationRate, c.Devices = size.MiB, testDisks(t)[:2] })
	at, model := lockedGroup(t, p)
	pod := must(os.OpenFile(at, os.O_RDWR, 0))(t)
	vg, disks := p.vgName, p.config.Devices
	refused := func(args ...string) {
		t.Helper()
		out, err := exec.Command("timeout", append([]string{"20"}, args...)...).CombinedOutput()
		if err == nil {
			t.Errorf("%s was not refused: %s", strings.Join(args, " "), out)
		}
	}
	for _, lv := range []string{"forkbase", "fork-forkbase", "ofFork", "snapbase", "reader", "scratch", "gone"} {
		refused("lvextend", "-L", "+8M", vg+"/"+lv)
		refused("lvrename", vg, lv, "other")
	}
	for _, lv := range []string{"forkbase", "fork-forkbase", "snapbase"} {
		refused("lvremove", "-f", vg+"/"+lv)
		refused("lvreduce", "-f", "-L", "-4M", vg+"/"+lv)
		refused("lvconvert", "-y", "--type", "mirror", "-m", "1", "--mirrorlog", "core", vg+"/"+lv)
		refused("pvmove", "-n", lv, disks[0], disks[1])
	}
	refused("lvconvert", "--splitsnapshot", "-y", vg+"/ofFork")
	// For LVM2, the live layer of a volume is a snapshot that is in use.
	refused("lvremove", "-f", vg+"/later")
	refused("lvremove", "-f", vg+"/base")
	lvm(t, "lvextend", "-qq", "-L", "+8M", vg+"/later")
	before := devicesOf(t, p)
	vgck(t, vg)
	lvm(t, "vgs", vg)
	lvm(t, "lvs", vg)
	lvm(t, "vgchange", "-qq", "-ay", vg)
	for name, table := range devicesOf(t, p) {
		if was, had := before[name]; had && was != table && !strings.HasPrefix(name, "forkbase") { // forkbase is hydrated meanwhile
			t.Errorf("vgchange -ay changed the table of %s to\n%s\nfrom\n%s", name, table, was)
		}
	}
	if !bytes.Equal(readDevice(t, at, 64*size.MiB), model) {
		t.Error("the fork has other content")
	}
	ok(t, pod.Close())
	for _, lv := range []string{"reader", "scratch"} {
		ok(t, p.Deactivate(ctx, lv))
		ok(t, p.DeleteVolume(ctx, lv))
	}
	ok(t, p.DeleteSnapshot(ctx, "ofFork"))
	ok(t, p.DeleteVolume(ctx, "forkbase"))
}

// TestProtect_whenOpened: logical volumes that an older release left unlocked are
// locked when the pool is opened, and LVM2 may change a volume again after it is
// hydrated.
func TestProtect_whenOpened(t *testing.T) {
	p := testPool(t, nil)
	lockedGroup(t, p)
	config := p.config
	ok(t, p.Deactivate(t.Context(), "scratch"))
	ok(t, p.Deactivate(t.Context(), "reader"))
	waitHydrated(t, p, "forkbase")
	ok(t, p.Close())
	ok(t, lvm2test.Unlock(p.vgName))
	got := slices.DeleteFunc(found(t, config), func(f string) bool {
		return !strings.HasPrefix(f, "Unprotected") // the last table of forkbase may not have been loaded yet
	})
	if len(got) != 4 {
		t.Errorf("check found %q, want the four unlocked logical volumes", got)
	}
	p = openPool(t, config)
	if got := found(t, config); len(got) > 0 {
		t.Errorf("after opening the pool, check found %q", got)
	}
	v := must(p.latest())(t)
	for _, lv := range v.VG.LVs {
		plain := lv.Name == "forkbase" || lv.Name == "base" || catalog.SnapshotSegment(lv) != nil
		for _, l := range v.Layers.All() {
			plain = plain || l.LV == lv && l.Snap != nil
		}
		if !v.IsTrash(lv) && catalog.Untouchable(lv) == plain {
			t.Errorf("%s has status %v and flags %v; handed off should be %v", lv.Name, lv.Status, lv.Flags, !plain)
		}
	}
	ok(t, p.Deactivate(t.Context(), "forkbase"))
	lvm(t, "lvextend", "-qq", "-L", "+4M", p.vgName+"/forkbase")
	ok(t, p.DeleteVolume(t.Context(), "scratch"))
	ok(t, p.DeleteVolume(t.Context(), "reader"))
}

// TestMapped_isNotFree: extents that are free in the metadata, but that a device still
// maps, are not allocated, and health names the device.
func TestMapped_isNotFree(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.HydrationRate, c.LayerReserve = size.MiB, 1 })
	lockedGroup(t, p)
	v := must(p.latest())(t)
	store := v.VolumeByLV("forkbase").Fork.LV
	mapped := catalog.NewRangeSet(must(catalog.Physical(store))(t)...)
	// A foreign device also maps free extents.
	const foreign = "foreign-linear"
	free := v.Free[0]
	pv := must(dm.DeviceOf(v.VG.PVs[free.PV].Device))(t)
	must(p.dm.Create(foreign, "foreign"))(t)
	defer p.dm.Remove(foreign, 0)
	ok(t, p.dm.Load(foreign, whole(sectors(v, 3), dm.Linear{Device: pv, Offset: v.VG.Offset(v.VG.PVs[free.PV], free.Start)}), true))
	ok(t, p.dm.Resume(foreign, 0))
	mapped = mapped.Union(catalog.NewRangeSet(mapped[0], catalog.RangeSet{{PV: free.PV, Start: free.Start, Count: 3}}[0]))

	for end := time.Now().Add(20 * time.Second); ; { // the driver locks the store again when it notices
		ok(t, lvm2test.Unlock(p.vgName, store.Name))
		if exec.Command("lvremove", "-f", p.vgName+"/"+store.Name).Run() == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("lvm2 does not remove the store")
		}
	}
	ok(t, p.refresh(ctx))
	now := must(p.latest())(t)
	if len(now.Free.Intersect(mapped)) == 0 {
		t.Fatal("the mapped extents are not free in the metadata")
	}
	_, err := p.CreateVolume(ctx, VolumeSpec{Name: "all", Size: size.Bytes(p.room(now)) * now.ExtentSize(), Mode: Block})
	if err == nil || !strings.Contains(err.Error(), "still maps") {
		t.Errorf("a volume of all free extents returned %v", err)
	}
	other := must(p.CreateVolume(ctx, VolumeSpec{Name: "other", Size: size.Bytes(p.room(now)-40) * now.ExtentSize(), Mode: Block}))(t)
	now = must(p.latest())(t)
	if both := catalog.NewRangeSet(must(catalog.Physical(now.VolumeByLV(other.LV).LV))(t)...).Intersect(mapped); len(both) > 0 {
		t.Errorf("another volume got the mapped extents %v", both)
	}
	said := ""
	for _, c := range p.PoolHealth(ctx) {
		said += c.Reason + " " + c.Message + "\n"
	}
	if !strings.Contains(said, foreign) || !strings.Contains(said, lvm2.DMName(p.vgName, store.Name, layerCOW)) {
		t.Errorf("health says %s", said)
	}

	// Once nothing needs the devices, they are removed, and the extents can be allocated.
	ok(t, p.dm.Remove(foreign, 0))
	for _, lv := range []string{"reader", "scratch"} {
		ok(t, p.Deactivate(ctx, lv))
		ok(t, p.DeleteVolume(ctx, lv))
	}
	ok(t, p.DeleteSnapshot(ctx, "ofFork"))
	ok(t, p.Deactivate(ctx, "forkbase"))
	ok(t, p.DeleteVolume(ctx, "forkbase"))
	p.dm.Remove(lvm2.DMName(p.vgName, store.Name, layerCOW), 0)
	waitIdle(t, p)
	ok(t, p.DeleteVolume(ctx, other.LV))
	waitIdle(t, p)
	now = must(p.latest())(t)
	must(p.CreateVolume(ctx, VolumeSpec{Name: "all", Size: size.Bytes(p.room(now)) * now.ExtentSize(), Mode: Block}))(t)
	if used := p.facts.stillInUse(); len(used) > 0 {
		t.Errorf("still in use: %v", used)
	}
}
