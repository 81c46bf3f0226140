//go:build kernel

package interop

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// rows describes the group's logical volumes as LVM2 reports them, one line
// each: name, MiB, attributes, origin, automatic activation, tags. The size of
// a layer is "store" if LVM2 reports the same size as the metadata on the
// disks, because the pool decides how large a store is. Tags that a person
// cannot predict are left out, and names replace ids. The pool may trim a store
// at any time, so rows waits until the trimmed part is wiped.
func (g *group) rows() []string {
	g.Helper()
	const fields = "lv_size,lv_attr,origin,lv_autoactivation,lv_uuid,lv_tags"
	vg, report := g.settled(), g.report(fields)
	for vg.Seqno != g.metadata().Seqno { // the pool trimmed a store meanwhile
		vg, report = g.settled(), g.report(fields)
	}
	names := map[string]string{}
	for name, row := range report {
		names[strings.ReplaceAll(row["lv_uuid"], "-", "")] = name
	}
	var out []string
	for name, row := range report {
		var tags []string
		for _, t := range strings.Split(row["lv_tags"], ",") {
			key, value, _ := strings.Cut(strings.TrimPrefix(t, "dmsnap:"), "=")
			switch key {
			case "created", "unknown", "used", "exact": // times and sizes, and what is found out later
				continue
			case "of", "copy", "reads":
				t = key + "=" + names[value]
			}
			tags = append(tags, strings.TrimPrefix(t, "dmsnap:"))
		}
		slices.Sort(tags)
		auto := "auto"
		if row["lv_autoactivation"] == "" {
			auto = "noauto"
		}
		origin := row["origin"]
		if origin == "" {
			origin = "-"
		}
		length := strings.TrimSuffix(row["lv_size"], ".00")
		if lv := vg.LV(row["lv_name"]); slices.Contains(tags, "role=layer") && length == fmt.Sprint(4*lv.Size()) {
			length = "store"
		}
		out = append(out, strings.Join([]string{name, length, row["lv_attr"], origin, auto, strings.Join(tags, " ")}, " "))
	}
	slices.Sort(out)
	return out
}

// expect compares LVM2's view with want, and checks the metadata by vgck.
func (g *group) expect(after string, want ...string) {
	g.Helper()
	g.vgck(after)
	got := g.rows()
	want = slices.Sorted(slices.Values(want))
	if fmt.Sprint(got) != fmt.Sprint(want) {
		g.Errorf("after %s, lvs shows\n\t%s\nwant\n\t%s", after, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// TestOperations_asLVM2SeesThem: after each operation, LVM2 reports the expected
// logical volumes.
func TestOperations_asLVM2SeesThem(t *testing.T) {
	ctx := context.Background()
	g := newGroup(t, 1)
	g.config.NoFolding = true // the test cannot choose when the pool folds
	p := g.open()
	v, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "vol", Size: 64 * size.MiB, Mode: pool.Filesystem, FSType: "ext4"})
	g.ok(err)
	g.expect("create", "vol 64 -wi------- - auto fs=ext4 mode=filesystem name=vol role=volume unformatted")

	path, err := p.Activate(ctx, v.LV)
	g.ok(err)
	g.ok(p.SetFormatted(ctx, v.LV))
	vol := func(mib int, attr string) string {
		return fmt.Sprintf("vol %d %s - auto fs=ext4 mode=filesystem name=vol role=volume", mib, attr)
	}
	g.expect("activate", vol(64, "-wi-a-----"))

	live := func(name, attr string, order, sectors int) string {
		return fmt.Sprintf("%s store %s vol auto chunk=32 length=%d name=%[1]s of=vol order=%[4]d role=layer", name, attr, sectors, order)
	}
	frozen := func(name string, order, sectors int) string {
		return fmt.Sprintf("%s store -rI------k - noauto chunk=32 length=%d name=%[1]s of=vol order=%[3]d role=layer", name, sectors, order)
	}
	const small, large = 64 << 11, 96 << 11
	cut := func(name string, fill byte) {
		t.Helper()
		_, err := p.CreateSnapshot(ctx, name, v.LV)
		g.ok(err)
		g.write(path, 0, fill)
	}
	g.write(path, 0, '0')
	cut("s1", '1')
	g.expect("the first snapshot", vol(64, "owi-a-s---"), live("s1", "swi-a-s---", 1, small))
	cut("s2", '2')
	g.expect("the second snapshot", vol(64, "owi-a-s---"), frozen("s1", 1, small), live("s2", "swi-a-s---", 2, small))

	_, err = p.ExpandVolume(ctx, v.LV, 96*size.MiB, 0)
	g.ok(err)
	g.expect("expanding with snapshots", vol(96, "owi-a-s---"), frozen("s1", 1, small), live("s2", "swi-a-s---", 2, small))
	cut("s3", '3')
	cut("s4", '4')
	all := []string{vol(96, "owi-a-s---"), frozen("s1", 1, small), frozen("s2", 2, small), frozen("s3", 3, large), live("s4", "swi-a-s---", 4, large)}
	g.expect("the fourth snapshot", all...)

	// The layer of a middle snapshot stays, because the oldest reads through it.
	g.ok(p.DeleteSnapshot(ctx, "s2"))
	all[2] = strings.Replace(all[2], " name=s2", "", 1)
	g.expect("deleting the second snapshot", all...)

	// Volumes restored from frozen and live snapshots, while they exist and afterwards.
	if got := g.restored("s1", 2) + g.restored("s3", 2) + g.restored("s4", 2); got != "0.2.3." {
		t.Errorf("restored snapshots begin with %q", got)
	}
	g.expect("restores that are deleted again", all...)
	r, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "restored", Size: 64 * size.MiB, Mode: pool.Filesystem, FSType: "ext4", ReadOnly: true, Source: pool.Source{Kind: pool.FromSnapshot, LV: "s1"}})
	g.ok(err)
	restored := "restored 64 vrI---v--k - noauto fs=ext4 mode=filesystem name=restored readonly reads=s1 role=volume source=snapshot/s1"
	g.expect("a read-only restore", append(all, restored)...)
	c, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "clone", Mode: pool.Filesystem, FSType: "ext4", Source: pool.Source{Kind: pool.FromVolume, LV: v.LV}})
	g.ok(err)
	for slices.Contains(g.metadata().LV(c.LV).Flags, lvm2.FlagActivationSkip) {
		time.Sleep(10 * time.Millisecond) // until it is hydrated
	}
	g.settled()
	// The clone's internal layer stays the live one: older snapshots read through it.
	all[4] = frozen("s4", 4, large)
	all = append(all, strings.Replace(live("clone-of-vol", "swi-a-s---", 5, large), " name=clone-of-vol", "", 1))
	g.expect("a clone", append(all, restored, "clone 96 -wi------- - auto fs=ext4 mode=filesystem name=clone role=volume source=volume/vol")...)
	path, err = p.Activate(ctx, r.LV)
	g.ok(err)
	if got := g.first(path, 2); got != "0." {
		t.Errorf("the read-only restore begins with %q", got)
	}
	g.ok(p.Deactivate(ctx, r.LV)) // lvs warns about the table of an active one
	g.ok(p.DeleteVolume(ctx, r.LV))
	g.ok(p.DeleteVolume(ctx, c.LV))
	g.expect("deleting the copies", all...)

	// The volume is deleted, and its snapshots stay.
	g.ok(p.DeleteVolume(ctx, v.LV))
	hidden := []string{
		"vol 96 owI---s--k - noauto deleted fs=ext4 mode=filesystem role=volume",
		all[1], all[2], all[3], all[4], strings.Replace(all[5], "swi-a-s---", "swi---s---", 1),
	}
	g.expect("deleting the volume", hidden...)
	if got := g.restored("s1", 2) + g.restored("s3", 2) + g.restored("s4", 2); got != "0.2.3." {
		t.Errorf("after the volume was deleted, restored snapshots begin with %q", got)
	}
	g.ok(p.DeleteSnapshot(ctx, "s4"))
	g.ok(p.DeleteSnapshot(ctx, "s1"))
	g.expect("deleting the oldest snapshot", hidden[0], hidden[3], strings.Replace(hidden[4], " name=s4", "", 1), hidden[5])
	g.ok(p.DeleteSnapshot(ctx, "s3"))
	g.expect("deleting everything")
	if left := g.devices(); len(left) > 0 {
		t.Errorf("the devices %v are left", left)
	}
	g.close()
	g.lvm("vgremove", g.name)
}

// TestGroup_usableByLVM2Immediately: LVM2, which caches which disks to scan, can
// immediately use a group that the pool has made or extended.
func TestGroup_usableByLVM2Immediately(t *testing.T) {
	ctx := context.Background()
	g := newGroup(t, 0)
	fields := func() string {
		return strings.TrimSpace(g.lvm("vgs", "--noheadings", "--units", "m", "-o", "pv_count,lv_count,vg_mda_count,vg_mda_used_count,vg_extent_size,vg_missing_pv_count", g.name))
	}
	g.lvm("vgs") // LVM2 caches that no disk has a physical volume
	g.config.Create, g.config.Devices = true, g.disks[:1]
	p := g.open()
	g.vgck("creation by the pool")
	if got := strings.Join(strings.Fields(fields()), " "); got != "1 0 1 1 4.00m 0" {
		t.Errorf("LVM2 shows the group that the pool made as %s", got)
	}
	g.lvm("lvcreate", "-q", "-L", "8M", "-n", "theirs", g.name)
	g.write("/dev/"+g.name+"/theirs", 0, 't')
	_, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "ours", Size: 8 * size.MiB, Mode: pool.Block})
	g.ok(err)
	g.close()

	g.config.Devices = g.disks[:2]
	p = g.open()
	g.vgck("the pool's extension")
	if got := strings.Join(strings.Fields(fields()), " "); got != "2 2 2 2 4.00m 0" {
		t.Errorf("LVM2 shows the group that the pool extended as %s", got)
	}
	g.lvm("lvcreate", "-q", "-L", "8M", "-n", "theirs2", g.name, g.disks[1])
	g.write("/dev/"+g.name+"/theirs2", 0, 'u')
	path, err := p.Activate(ctx, "ours")
	g.ok(err)
	g.write(path, 0, 'o')
	if got := g.first("/dev/"+g.name+"/theirs", 1) + g.first("/dev/"+g.name+"/theirs2", 1) + g.first(path, 1); got != "tuo" {
		t.Errorf("the volumes have %s", got)
	}
	// The pool does not take a disk of LVM2's, although the disk matches the
	// configuration.
	g.close()
	g.lvm("vgremove", "-q", "-ff", "-y", g.name)
	g.lvm("pvremove", "-q", g.disks[0])
	g.lvm("vgcreate", "-q", "other", g.disks[1])
	if _, err := g.tryOpen(pool.Options{}); !errors.Is(err, pool.ErrUnavailable) || !strings.Contains(err.Error(), g.disks[1]) {
		t.Errorf("making a group on a disk of LVM2's: %v, want an error that names the disk", err)
	}
	g.config.Devices = g.disks[:1]
	g.open()
	g.close()
	g.config.Devices = g.disks[:2]
	g.open()
	g.vgck("making the group again")
	if got := strings.Fields(g.lvm("pvs", "--noheadings", "-o", "pv_name,vg_name", g.disks[0], g.disks[1])); fmt.Sprint(got) != fmt.Sprint([]string{g.disks[0], g.name, g.disks[1], "other"}) {
		t.Errorf("LVM2 shows the disks %v", got)
	}
}
