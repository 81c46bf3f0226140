//go:build kernel

package interop

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// tables describes the group's devices by name: uuid, read-only or not, and the
// table with names instead of device numbers.
func (g *group) tables() map[string]string {
	g.Helper()
	names := map[dm.Device]string{}
	for _, d := range g.disks {
		n, err := dm.DeviceOf(d)
		g.ok(err)
		names[n] = d
	}
	all := map[string]dm.Info{}
	for _, name := range g.devices() {
		info, err := g.dm.Info(name)
		g.ok(err)
		names[info.Device], all[name] = name, info
	}
	out := map[string]string{}
	for name, info := range all {
		t, err := g.dm.Table(name)
		g.ok(err)
		text := strings.TrimSpace(t.String())
		for d, called := range names {
			text = strings.ReplaceAll(text+" ", " "+d.String()+" ", " "+called+" ")
		}
		access := "rw"
		if info.ReadOnly {
			access = "ro"
		}
		if info.Suspended || info.Loaded {
			access += " suspended or with a second table"
		}
		out[name] = fmt.Sprintf("%s %s %s", info.UUID, access, strings.TrimSpace(text))
	}
	return out
}

func (g *group) sameTables(what string, got, want map[string]string) {
	g.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			g.Errorf("%s: device %s is\n\t%q, but was\n\t%q", what, name, got[name], want[name])
		}
	}
	for name := range got {
		if want[name] == "" {
			g.Errorf("%s: unexpected device %s:\n\t%s", what, name, got[name])
		}
	}
}

// TestBoot_lvm2ActivatesFirst: at a boot, before the driver starts, LVM2 activates the
// driver's logical volumes, and the pool then takes the devices over.
func TestBoot_lvm2ActivatesFirst(t *testing.T) {
	ctx := context.Background()
	g := newGroup(t, 2)
	g.config.Devices = g.disks
	p := g.open()
	create := func(spec pool.VolumeSpec) string {
		t.Helper()
		v, err := p.CreateVolume(ctx, spec)
		g.ok(err)
		return v.LV
	}
	up := func(lv string) string {
		t.Helper()
		path, err := p.Activate(ctx, lv)
		g.ok(err)
		return path
	}
	cut := func(name, lv string) {
		t.Helper()
		_, err := p.CreateSnapshot(ctx, name, lv)
		g.ok(err)
	}
	// A volume with several segments on two disks, whose name LVM2 escapes. It
	// is cut before and after it grows.
	holes := create(pool.VolumeSpec{Name: "holes", Size: 8 * size.MiB, Mode: pool.Block})
	vol := create(pool.VolumeSpec{Name: "my-vol", Size: 16 * size.MiB, Mode: pool.Block})
	create(pool.VolumeSpec{Name: "between", Size: 996 * size.MiB, Mode: pool.Filesystem, FSType: "ext4"})
	g.ok(p.DeleteVolume(ctx, holes))
	g.settled()
	path := up(vol)
	for i := range 8 {
		g.write(path, i, 'a')
	}
	cut("s-1", vol)
	g.write(path, 1, 'b')
	if _, err := p.ExpandVolume(ctx, vol, 40*size.MiB, 0); err != nil {
		t.Fatal(err)
	}
	cut("s-2", vol)
	g.write(path, 2, 'c')
	cut("s-3", vol)
	g.write(path, 3, 'd')
	plain := create(pool.VolumeSpec{Name: "plain", Size: 8 * size.MiB, Mode: pool.Block})
	g.write(up(plain), 0, 'p')
	up("between")
	if n := len(g.metadata().LV(vol).Segments); n < 2 {
		t.Errorf("the volume has %d segments, but the test needs several", n)
	}

	nodes := []string{path, g.dm.Node(g.name + "-s--3"), g.dm.Node(g.name + "-plain")}
	digests := func() (all []string) {
		for _, n := range nodes {
			all = append(all, fmt.Sprintf("%s %x", n, g.digest(n)))
		}
		return all
	}
	ours, bytes := g.tables(), digests()
	if len(ours) != 6 {
		t.Errorf("the pool's activation made the devices %v", ours)
	}
	if report := g.report("data_percent,lv_active,lv_skip_activation"); report["s-3"]["data_percent"] == "" || report["s-1"]["lv_active"] != "" || report["s-1"]["lv_skip_activation"] == "" {
		t.Errorf("lvs shows %v", report)
	}
	g.close()

	g.lvm("vgchange", "-q", "-an", g.name)
	if left := g.devices(); len(left) > 0 {
		t.Fatalf("vgchange -an left %v", left)
	}
	if left, _ := filepath.Glob("/dev/mapper/" + g.name + "-*"); len(left) > 0 {
		t.Errorf("vgchange -an left the nodes %v", left)
	}
	g.lvm("vgchange", "-q", "-ay", g.name)
	theirs := g.tables()
	g.sameTables("activated by LVM2", theirs, ours)
	if got := digests(); !slices.Equal(got, bytes) {
		t.Errorf("activated by LVM2, the devices have\n\t%v, but had\n\t%v", got, bytes)
	}
	g.write(path, 4, 'e') // the kernel saves the original into s-3's store

	before := g.numbers()
	p = g.open()
	g.sameTables("taken over by the pool", g.tables(), theirs)
	if after := g.numbers(); !maps.Equal(before, after) {
		t.Errorf("the takeover made new devices or changed tables: %v, before %v", after, before)
	}
	if got := up(vol); got != path {
		t.Errorf("Activate returns %s, but was %s", got, path)
	}
	g.sameTables("activated again", g.tables(), theirs)
	cut("s-4", vol)
	g.write(path, 5, 'f')
	for snapshot, want := range map[string]string{"s-1": "aaaaaaaa", "s-2": "abaaaaaa", "s-3": "abcaaaaa", "s-4": "abcdeaaa"} {
		if got := g.restored(snapshot, 8); got != want {
			t.Errorf("snapshot %s has %s, want %s", snapshot, got, want)
		}
	}
	if got := g.first(path, 8); got != "abcdefaa" {
		t.Errorf("the volume has %s", got)
	}
	g.vgck("the takeover")
	for _, lv := range []string{vol, plain, "between"} {
		g.ok(p.Deactivate(ctx, lv))
	}
	g.settled() // trash has a device while it is wiped
	if left := g.devices(); len(left) > 0 {
		t.Errorf("Deactivate left the devices %v", left)
	}

	// LVM2 activates the group while the pool is open, and the pool deletes
	// everything.
	g.lvm("vgchange", "-q", "-ay", g.name)
	g.ok(p.DeleteSnapshot(ctx, "s-4"))
	g.ok(p.DeleteSnapshot(ctx, "s-1"))
	for _, lv := range []string{vol, plain, "between"} {
		g.ok(p.DeleteVolume(ctx, lv))
	}
	if got := g.restored("s-2", 8); got != "abaaaaaa" {
		t.Errorf("after the volume was deleted, snapshot s-2 has %s", got)
	}
	g.ok(p.DeleteSnapshot(ctx, "s-3"))
	g.ok(p.DeleteSnapshot(ctx, "s-2"))
	g.settled()
	if left := g.devices(); len(left) > 0 {
		t.Errorf("after everything was deleted, there are the devices %v", left)
	}
	if left, _ := filepath.Glob("/dev/mapper/" + g.name + "-*"); len(left) > 0 {
		t.Errorf("after everything was deleted, there are the nodes %v", left)
	}
}

// numbers returns for each device what changes when the device is made again or
// gets a table.
func (g *group) numbers() map[string]string {
	g.Helper()
	out := map[string]string{}
	for _, name := range g.devices() {
		info, err := g.dm.Info(name)
		g.ok(err)
		out[name] = fmt.Sprint(info.Device, info.EventNr)
	}
	return out
}

// TestBoot_lvm2ActivatesNothingHidden: LVM2 activates no unfinished copy, frozen
// layer, deleted volume or trash, neither at boot nor on demand. It can deactivate
// what an interrupted copy left active.
func TestBoot_lvm2ActivatesNothingHidden(t *testing.T) {
	ctx := context.Background()
	g := newGroup(t, 1)
	p := g.open()
	for name, length := range map[string]size.Bytes{"source": 16 * size.MiB, "gone": 256 * size.MiB} {
		v, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: name, Size: length, Mode: pool.Block})
		g.ok(err)
		path, err := p.Activate(ctx, v.LV)
		g.ok(err)
		g.write(path, 0, '0')
		for i := range 3 {
			_, err = p.CreateSnapshot(ctx, fmt.Sprintf("%s-%d", name, i), v.LV)
			g.ok(err)
			g.write(path, 0, byte('1'+i))
		}
	}
	g.ok(p.DeleteVolume(ctx, "gone"))
	// Trash stays for as long as its device is open.
	f, err := os.Open(g.dm.Node(g.name + "-source--2"))
	g.ok(err)
	for i := range 3 {
		g.ok(p.DeleteSnapshot(ctx, fmt.Sprintf("source-%d", i)))
	}
	_, err = p.CreateSnapshot(ctx, "again", "source")
	g.ok(err)
	_, err = p.CreateVolume(ctx, pool.VolumeSpec{Name: "copy", Mode: pool.Block, Source: pool.Source{Kind: pool.FromSnapshot, LV: "gone-0"}})
	g.ok(err)
	g.close() // before 256 MiB are hydrated
	g.ok(f.Close())

	handsOff := func(after string) {
		t.Helper()
		g.vgck(after)
		found := map[string]int{}
		for name, row := range g.report("lv_active,lv_skip_activation,lv_autoactivation,lv_tags") {
			kind := ""
			switch tags := row["lv_tags"]; {
			case strings.Contains(tags, "dmsnap:copy="):
				kind = "copy"
			case strings.Contains(tags, "role=fork"):
				kind = "store"
			case strings.Contains(tags, "dmsnap:deleted"):
				kind = "deleted"
			case strings.Contains(tags, "role=trash"):
				kind = "trash"
			case strings.Contains(tags, "role=layer") && name != "again" && name != "gone-2":
				kind = "frozen"
			default:
				continue
			}
			found[kind]++
			if row["lv_active"] != "" || row["lv_skip_activation"] == "" || row["lv_autoactivation"] != "" {
				t.Errorf("after %s, %s %s: %v", after, kind, name, row)
			}
		}
		if found["trash"] == 0 || found["copy"] != 1 || found["store"] != 1 || found["deleted"] != 1 || found["frozen"] != 2 {
			t.Errorf("after %s, there are %v", after, found)
		}
	}
	// LVM2 does not deactivate the group while the chain that the fork reads
	// through is active, because other devices use these volumes. It does not
	// know the fork's devices. Without the fork's devices LVM2 deactivates the
	// oldest layer, and with it all devices that only this layer needs.
	for _, d := range []string{"-copy-window0", "-copy-fork", "-fork--copy-cow"} {
		if slices.Contains(g.devices(), g.name+d) {
			g.lvm("dmsetup", "remove", "--retry", g.name+d)
		}
	}
	if slices.Contains(g.devices(), g.name+"-gone--0") {
		if _, complaints := run("vgchange", "-an", g.name); !strings.Contains(complaints, "is used by another device") {
			t.Errorf("vgchange -an with an interrupted restore's devices: %s", complaints)
		}
		g.lvm("lvchange", "-an", g.name+"/gone-0")
	}
	g.lvm("vgchange", "-q", "-an", g.name)
	if left := g.devices(); len(left) > 0 {
		t.Errorf("the devices %v of the interrupted restore are left", left)
	}
	active := []string{g.name + "-again", g.name + "-again-cow", g.name + "-source", g.name + "-source-real"}
	for _, command := range []string{"-ay", "-aay"} {
		g.lvm("vgchange", "-q", command, g.name)
		handsOff("vgchange " + command)
		if got := g.devices(); !slices.Equal(got, active) {
			t.Errorf("vgchange %s activated %v, want %v", command, got, active)
		}
		g.lvm("vgchange", "-q", "-an", g.name)
	}

	// A new engine finishes the restore and wipes the trash.
	p = g.open()
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	v, err := p.CreateVolume(wait, pool.VolumeSpec{Name: "copy", Mode: pool.Block, Source: pool.Source{Kind: pool.FromSnapshot, LV: "gone-0"}})
	g.ok(err)
	path, err := p.Activate(ctx, v.LV)
	g.ok(err)
	if got := g.first(path, 2); got != "0." {
		t.Errorf("the finished copy has %q", got)
	}
	vg := g.settled()
	if lv := vg.LV("copy"); len(lv.Flags) > 0 {
		t.Errorf("the finished copy has the flags %v", lv.Flags)
	}
}
