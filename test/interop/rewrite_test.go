//go:build kernel

package interop

import (
	"context"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// eventually waits until the pool has read what LVM2 wrote.
func (g *group) eventually(what string, seen func() bool) {
	g.Helper()
	for deadline := time.Now().Add(6 * time.Second); !seen(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			g.Fatalf("the pool did not notice in time: %s", what)
		}
	}
}

// has reports whether a volume of that name and size is in the pool.
func (g *group) has(lv string, length size.Bytes) func() bool {
	return func() bool {
		v, err := g.pool.Volume(context.Background(), lv)
		return err == nil && v.Size == length
	}
}

// TestRewrite_tagsOfBothSurvive: LVM2 tags every logical volume of the driver, and the
// driver changes all of them: no tag of either side is lost.
func TestRewrite_tagsOfBothSurvive(t *testing.T) {
	ctx := context.Background()
	g := newGroup(t, 1)
	g.config.NoFolding = true // folding would remove v-1
	p := g.open()
	g.history("v")
	if _, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "fs", Size: 16 * size.MiB, Mode: pool.Filesystem, FSType: "xfs"}); err != nil {
		t.Fatal(err)
	}
	before := g.metadata()
	all := []string{"v", "v-0", "v-1", "v-2", "fs"}
	g.lvm("vgchange", "-q", "--addtag", "theirs:vg", g.name)
	g.lvm("lvchange", "-q", "--addtag", "theirs=1", "--addtag", "dmsnapper", g.name+"/v", g.name+"/v-0", g.name+"/v-1", g.name+"/v-2", g.name+"/fs")
	g.lvm("lvchange", "-q", "--alloc", "cling", g.name+"/fs")
	g.lvm("lvchange", "-q", "--readahead", "64", g.name+"/fs")
	after := g.metadata()
	for _, lv := range all {
		was, is := before.LV(lv), after.LV(lv)
		for _, tag := range append(slices.Clone(was.Tags), "theirs=1", "dmsnapper") {
			if !slices.Contains(is.Tags, tag) {
				t.Errorf("LVM2 changed the tags of %s to %v from %v", lv, is.Tags, was.Tags)
			}
		}
		if !slices.Equal(was.Status, is.Status) || !slices.Equal(was.Flags, is.Flags) {
			t.Errorf("LVM2 changed the status of %s to %v %v from %v %v", lv, is.Status, is.Flags, was.Status, was.Flags)
		}
	}
	g.listed("tagging", "fs v v@v-0 v@v-1 v@v-2")

	// Now the driver changes each of them.
	g.ok(p.SetFormatted(ctx, "fs"))
	if _, err := p.ExpandVolume(ctx, "fs", 24*size.MiB, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := p.CreateSnapshot(ctx, "v-3", "v"); err != nil { // freezes v-2
		t.Fatal(err)
	}
	g.ok(p.DeleteSnapshot(ctx, "v-1")) // only its name is removed
	g.ok(p.DeleteVolume(ctx, "v"))     // stays for its snapshots
	if got := g.restored("v-0", 2) + g.restored("v-2", 2) + g.restored("v-3", 2); got != "0.2.3." {
		t.Errorf("the snapshots have %s", got)
	}
	g.settled()
	g.vgck("changing what LVM2 tagged")
	report := g.report("lv_tags,vg_tags,lv_allocation_policy,lv_read_ahead,lv_size,origin")
	for _, lv := range all {
		if tags := strings.Split(report[lv]["lv_tags"], ","); !slices.Contains(tags, "theirs=1") || !slices.Contains(tags, "dmsnapper") {
			t.Errorf("%s has the tags %v", lv, tags)
		}
		if tags := strings.Split(report[lv]["vg_tags"], ","); !slices.Contains(tags, "theirs:vg") {
			t.Errorf("the group has the tags %v", tags)
		}
	}
	if got := report["fs"]; got["lv_allocation_policy"] != "cling" || got["lv_read_ahead"] == "auto" || got["lv_size"] != "24.00" {
		t.Errorf("the other volume is %v", got)
	}
}

// TestRewrite_resizedAndRenamed: the pool follows LVM2 when it grows and renames
// volumes and stores.
func TestRewrite_resizedAndRenamed(t *testing.T) {
	ctx := context.Background()
	g := newGroup(t, 1)
	p := g.open()
	path := g.history("v")
	plain, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "plain", Size: 16 * size.MiB, Mode: pool.Block})
	g.ok(err)

	g.lvm("lvextend", "-q", "-L", "32M", g.name+"/plain")
	g.eventually("lvextend of a volume", g.has("plain", 32*size.MiB))
	at, err := p.Activate(ctx, plain.LV)
	g.ok(err)
	if got := len(g.first(at, 1<<20)); got != 32<<20/int(block) {
		t.Errorf("the extended volume has %d blocks", got)
	}

	// The live store, while the volume is in use.
	g.lvm("lvextend", "-q", "-L", "12M", g.name+"/v-2")
	g.write(path, 1, 'x')
	for snapshot, want := range map[string]string{"v-0": "0..", "v-1": "1..", "v-2": "2.."} {
		if got := g.restored(snapshot, 3); got != want {
			t.Errorf("after lvextend of the live store, %s has %q, want %q", snapshot, got, want)
		}
	}

	// LVM2 grows a volume with a snapshot only while it is inactive.
	if _, complaints := run("lvextend", "-q", "-L", "32M", g.name+"/v"); complaints == "" {
		t.Error("lvextend of an active origin is possible now; add it to this test")
	}
	g.ok(p.Deactivate(ctx, "v"))
	g.lvm("lvextend", "-q", "-L", "32M", g.name+"/v")
	g.eventually("lvextend of an origin", g.has("v", 32*size.MiB))
	g.lvm("vgchange", "-q", "-ay", g.name)
	theirs := g.tables()
	g.lvm("vgchange", "-q", "-an", g.name)
	path, err = p.Activate(ctx, "v")
	g.ok(err)
	_, err = p.Activate(ctx, "plain")
	g.ok(err)
	g.sameTables("activated by the pool after lvextend", g.tables(), theirs)
	g.write(path, 2, 'y')
	g.write(path, 300, 'z') // beyond the end of the snapshots
	if _, err := p.CreateSnapshot(ctx, "v-3", "v"); err != nil {
		t.Fatal(err)
	}
	g.write(path, 0, '4')
	for snapshot, want := range map[string]string{"v-0": "0..", "v-1": "1..", "v-2": "2..", "v-3": "3xy"} {
		if got := g.restored(snapshot, 3); got != want {
			t.Errorf("after lvextend of the volume, %s has %q, want %q", snapshot, got, want)
		}
	}
	g.vgck("resizing by LVM2")

	// LVM2 renames active volumes with their devices, and the content stays.
	// Without udev LVM2 needs the links in /dev, which vgmknodes makes.
	g.lvm("vgmknodes", g.name)
	g.lvm("lvrename", "-q", g.name, "v", "w")
	g.lvm("lvrename", "-q", g.name, "v-3", "w-3")
	if _, complaints := run("lvrename", "-q", g.name, "v-0", "w-0"); !strings.Contains(complaints, "locked") {
		t.Errorf("lvrename of a frozen layer: %q", complaints)
	}
	g.listed("lvrename", "plain w w@v-0 w@v-1 w@v-2 w@w-3")
	path, err = p.Activate(ctx, "w")
	g.ok(err)
	g.write(path, 1, '5')
	if got := g.first(path, 4); got != "45y." {
		t.Errorf("the renamed volume has %q", got)
	}
	for snapshot, want := range map[string]string{"v-0": "0..", "v-1": "1..", "v-2": "2..", "w-3": "3xy"} {
		if got := g.restored(snapshot, 3); got != want {
			t.Errorf("after lvrename, %s has %q, want %q", snapshot, got, want)
		}
	}
	for _, s := range []string{"w-3", "v-1", "v-0", "v-2"} {
		g.ok(p.DeleteSnapshot(ctx, s))
	}
	for _, v := range []string{"w", "plain"} {
		g.ok(p.DeleteVolume(ctx, v))
	}
	g.settled()
	g.expect("deleting everything")
	if left := g.devices(); len(left) > 0 {
		t.Errorf("the devices %v are left", left)
	}
}

// TestRewrite_disksExchanged: the pool follows LVM2 when it adds a disk to the group,
// moves a volume in use to the disk, and removes the first disk.
func TestRewrite_disksExchanged(t *testing.T) {
	ctx := context.Background()
	g := newGroup(t, 1)
	p := g.open()
	v, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", Size: 64 * size.MiB, Mode: pool.Block})
	g.ok(err)
	path, err := p.Activate(ctx, v.LV)
	g.ok(err)
	for i := range 20 {
		g.write(path, i, byte('a'+i))
	}
	content := g.digest(path)
	was, err := p.Capacity(ctx)
	g.ok(err)
	g.lvm("vgextend", "-q", g.name, g.disks[1])
	g.eventually("vgextend", func() bool {
		c, err := p.Capacity(ctx)
		return err == nil && c.Total > was.Total*19/10
	})
	tags := g.metadata().LV("v").Tags

	// The pool continues to work while LVM2 moves the volume, which is in use
	// all the time.
	moving := exec.Command("pvmove", "-q", "-i", "1", g.disks[0], g.disks[1])
	var said strings.Builder
	moving.Stderr = &said
	g.ok(moving.Start())
	ended := make(chan error, 1)
	go func() { ended <- moving.Wait() }()
	mirrored, rounds := false, 0
	for end := (<-chan error)(ended); end != nil; rounds++ {
		select {
		case err := <-end:
			if said := strings.TrimSpace(harmless.ReplaceAllString(said.String(), "")); err != nil || said != "" {
				t.Errorf("pvmove: %v: %s", err, said)
			}
			end = nil
		case <-time.After(20 * time.Millisecond):
		}
		mirrored = mirrored || g.metadata().LV("pvmove0") != nil
		w, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "meanwhile", Size: 4 * size.MiB, Mode: pool.Block})
		g.ok(err)
		if err := p.DeleteVolume(ctx, w.LV); err != nil && !errors.Is(err, pool.ErrPrecondition) { // pvmove may be moving it
			t.Error(err)
		}
		if got, err := p.Activate(ctx, v.LV); err != nil || got != path {
			t.Errorf("Activate of the volume while it is moved: %s, %v", got, err)
		}
		g.write(path, 20+rounds%1000, byte('a'+rounds%20))
	}
	if !mirrored {
		t.Error("pvmove ended before the test saw its mirror")
	}
	for i := range min(rounds, 1000) {
		g.write(path, 20+i, 0)
	}
	g.ok(p.DeleteVolume(ctx, "meanwhile"))
	if got := g.digest(path); got != content {
		t.Error("the moved volume has other bytes")
	}
	vg := g.settled()
	if got := vg.LV("v").Tags; !slices.Equal(got, tags) {
		t.Errorf("the moved volume has the tags %v, but had %v", got, tags)
	}
	g.vgck("pvmove")
	g.lvm("vgreduce", "-q", g.name, g.disks[0])
	g.eventually("vgreduce", func() bool {
		c, err := p.Capacity(ctx)
		return err == nil && c.Total == was.Total
	})
	if _, err := p.CreateSnapshot(ctx, "s", v.LV); err != nil {
		t.Fatal(err)
	}
	g.write(path, 0, 'X')
	if got := g.restored("s", 3) + g.first(path, 3); got != "abcXbc" {
		t.Errorf("on the other disk, the snapshot and the volume have %s", got)
	}
	g.vgck("vgreduce")
	if table := g.tables()[g.name+"-v-real"]; !strings.Contains(table, g.disks[1]) || strings.Contains(table, g.disks[0]) {
		t.Errorf("the moved volume's table is %s", table)
	}
}
