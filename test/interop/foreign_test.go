//go:build kernel

package interop

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// foreign has the metadata of a group that LVM2 made on a kernel with all the
// targets: a thin pool with volumes, RAID 1, cache, write cache, stripes and
// mirror.
const foreign = "testdata/foreign.vg"

// unknown is a logical volume of a type that no LVM2 knows. LVM2 keeps such a
// volume, but then no longer changes anything in the group.
const unknown = `
		later {
			id = "AAAAAA-0000-0000-0000-0000-0000-000000"
			status = ["READ", "WRITE", "VISIBLE"]
			flags = []
			segment_count = 1
			segment1 {
				start_extent = 0
				extent_count = 5
				type = "later"
				magic_key = 77
				areas {
					list = ["pv0", 100]
				}
			}
		}
`

// newForeignGroup restores the foreign metadata onto the scratch disks.
func newForeignGroup(t *testing.T, more string) *group {
	t.Helper()
	g := newGroup(t, 2)
	g.lvm("vgremove", "-q", g.name)
	g.lvm("pvremove", "-q", g.disks[0], g.disks[1])
	text, err := os.ReadFile(foreign)
	g.ok(err)
	edited := strings.Replace(string(text), "\nvg {", "\n"+g.name+" {", 1)
	edited = strings.Replace(edited, "logical_volumes {", "logical_volumes {"+more, 1)
	file := filepath.Join(t.TempDir(), "vg")
	g.ok(os.WriteFile(file, []byte(edited), 0o600))
	ids := regexp.MustCompile(`pv\d+ \{\s+id = "([^"]+)"`).FindAllStringSubmatch(edited, -1)
	for i, disk := range g.disks[:2] {
		g.lvm("pvcreate", "-q", "-q", "--norestorefile", "--uuid", ids[i][1], disk)
	}
	if _, complaints := run("vgcfgrestore", "--force", "-f", file, g.name); !benign(complaints) {
		t.Fatalf("vgcfgrestore: %s", complaints)
	}
	return g
}

// benign reports whether a command complained only with warnings that thin
// pools or unknown types always cause.
func benign(complaints string) bool {
	for _, line := range strings.Split(complaints, "\n") {
		if line != "" && !strings.Contains(line, "WARNING: ") {
			return false
		}
	}
	return true
}

// clean matches the tag by which the driver records on the group which extents
// are clean.
var clean = regexp.MustCompile(`(, )?"dmsnap:clean=[^"]*"`)

// backup returns LVM2's own text of the group: everything but the logical
// volumes in rest, and each logical volume by its name in lvs. It leaves out
// the driver's logical volumes, and what every commit changes.
func (g *group) backup() (rest string, lvs map[string]string) {
	g.Helper()
	file := filepath.Join(g.TempDir(), "backup")
	if _, complaints := run("vgcfgbackup", "-f", file, g.name); !benign(complaints) {
		g.Fatalf("vgcfgbackup: %s", complaints)
	}
	text, err := os.ReadFile(file)
	g.ok(err)
	lvs = map[string]string{}
	inside, lv := false, ""
	for _, line := range strings.Split(string(text), "\n") {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimRight(line, " \t")
		if !inside {
			line = strings.Replace(clean.ReplaceAllString(line, ""), "[, ", "[", 1)
		}
		switch {
		case line == "", line == "\ttags = []":
		case line == "\tlogical_volumes {":
			inside = true
		case inside && line == "\t}":
			inside = false
		case inside && strings.HasPrefix(line, "\t\t") && !strings.HasPrefix(line, "\t\t\t") && strings.HasSuffix(line, " {"):
			lv = strings.TrimSuffix(strings.TrimSpace(line), " {")
		case inside:
			lvs[lv] += line + "\n"
		case regexp.MustCompile(`^\t?(seqno|description|creation_host|creation_time) = `).MatchString(line):
		default:
			rest += line + "\n"
		}
	}
	ours := func(text string) bool { return strings.Contains(text, `"dmsnap:role=`) }
	for name, text := range lvs {
		if m := regexp.MustCompile(`cow_store = "([^"]+)"`).FindStringSubmatch(text); m != nil && ours(lvs[m[1]]) {
			defer delete(lvs, name)
		}
	}
	maps.DeleteFunc(lvs, func(_, text string) bool { return ours(text) })
	return rest, lvs
}

func (g *group) sameBackup(after string, rest string, lvs map[string]string) {
	g.Helper()
	gotRest, got := g.backup()
	if gotRest != rest {
		g.Errorf("after %s, LVM2's backup has\n%s\nbut had\n%s", after, gotRest, rest)
	}
	for name := range lvs {
		if got[name] != lvs[name] {
			g.Errorf("after %s, LVM2's backup of %s has\n%s\nbut had\n%s", after, name, got[name], lvs[name])
		}
	}
	for name := range got {
		if lvs[name] == "" {
			g.Errorf("after %s, LVM2's backup has a new %s\n%s", after, name, got[name])
		}
	}
}

// extents returns a checksum of each extent that LVM2 reports as used.
func (g *group) extents() map[string][32]byte {
	g.Helper()
	out := map[string][32]byte{}
	report := g.lvm("pvs", "-q", "--segments", "--noheadings", "--separator", " ", "-o", "pv_name,pvseg_start,pvseg_size,lv_name", "-S", "vg_name="+g.name)
	for _, line := range strings.Split(strings.TrimSpace(report), "\n") {
		f := strings.Fields(line)
		if len(f) < 4 { // free
			continue
		}
		start, err := strconv.Atoi(f[1])
		g.ok(err)
		count, err := strconv.Atoi(f[2])
		g.ok(err)
		disk, err := os.OpenFile(f[0], os.O_RDONLY|unix.O_DIRECT, 0)
		g.ok(err)
		buffer := buffers.Get().(*buffer)
		for e := start; e < start+count; e++ {
			_, err := disk.ReadAt(buffer[:], 1<<20+int64(e)*4<<20)
			g.ok(err)
			out[fmt.Sprintf("extent %d of %s (%s)", e, f[0], f[3])] = sha256.Sum256(buffer[:])
		}
		buffers.Put(buffer)
		disk.Close()
	}
	return out
}

// scribble writes different content to each extent of both disks.
func (g *group) scribble() {
	g.Helper()
	buffer := buffers.Get().(*buffer)
	defer buffers.Put(buffer)
	for i, d := range g.disks[:2] {
		disk, err := os.OpenFile(d, os.O_WRONLY|unix.O_DIRECT, 0)
		g.ok(err)
		for e := range 255 {
			copy(buffer[:], bytes.Repeat([]byte(fmt.Sprintf("disk %d extent %03d", i, e)), 64<<10/17))
			_, err := disk.WriteAt(buffer[:64<<10], 1<<20+int64(e)*4<<20)
			g.ok(err)
		}
		g.ok(disk.Close())
	}
}

// exercise makes, uses and deletes volumes and snapshots until the driver has
// used every free extent of the group.
func (g *group) exercise() {
	g.Helper()
	ctx := context.Background()
	p := g.open()
	g.history("ours")
	if got := g.restored("ours-0", 2) + g.restored("ours-2", 2); got != "0.2." {
		g.Errorf("the snapshots have %s", got)
	}
	if _, err := p.ExpandVolume(ctx, "ours", 32*size.MiB, 0); err != nil {
		g.Fatal(err)
	}
	room, err := p.Capacity(ctx)
	g.ok(err)
	_, err = p.CreateVolume(ctx, pool.VolumeSpec{Name: "all", Size: room.MaxVolume, Mode: pool.Block})
	g.ok(err)
	path, err := p.Activate(ctx, "all") // zeroes all of it
	g.ok(err)
	for i := range int(room.MaxVolume / block) {
		if i%64 == 0 {
			g.write(path, i, 'w')
		}
	}
	for _, s := range []string{"ours-1", "ours-2"} {
		g.ok(p.DeleteSnapshot(ctx, s))
	}
	g.ok(p.DeleteVolume(ctx, "all"))
	g.settled()
}

// TestForeign_everyKind: the pool works beside logical volumes of every kind that LVM2
// has.
func TestForeign_everyKind(t *testing.T) {
	ctx := context.Background()
	g := newForeignGroup(t, "")
	g.scribble()
	lvm := func(args ...string) {
		t.Helper()
		if _, complaints := run(args...); !benign(complaints) {
			t.Fatalf("%v: %s", args, complaints)
		}
	}
	// LVM2's volumes that are in use: one with a snapshot, and one with every
	// kind of entry that LVM2 writes into metadata.
	lvm("lvcreate", "-q", "-L", "16M", "-n", "origin", g.name)
	origin, snapshot := "/dev/"+g.name+"/origin", "/dev/"+g.name+"/taken"
	g.write(origin, 0, 'o')
	lvm("lvcreate", "-q", "-s", "-c", "64k", "-L", "8M", "-n", "taken", g.name+"/origin")
	g.write(origin, 0, 'O')
	lvm("lvcreate", "-q", "-an", "-Wn", "-Zn", "-l", "3", "--addtag", "a/b=c:d&e!f#g+h", "--addtag", "dmsnap", "-prw", "-My", "--major", "254", "--minor", "77",
		"-r", "128", "-C", "y", "-ky", "--setautoactivation", "n", "-n", "every.thing_+-x", g.name)
	lvm("lvchange", "-q", "-pr", g.name+"/every.thing_+-x")
	lvm("vgchange", "-q", "--addtag", "theirs", "--alloc", "cling", "--logicalvolume", "500", "--maxphysicalvolumes", "20", g.name)
	rest, lvs := g.backup()
	if len(lvs) < 28 || strings.Contains(fmt.Sprint(rest, lvs), "dmsnap:") {
		t.Fatalf("LVM2's backup has %d logical volumes: %v", len(lvs), slices.Sorted(maps.Keys(lvs)))
	}
	data, tables := g.extents(), g.tables()
	if len(data) < 60 {
		t.Fatalf("LVM2 uses the extents %v", slices.Sorted(maps.Keys(data)))
	}

	g.exercise()
	p := g.pool
	g.sameBackup("the pool's operations", rest, lvs)
	if _, complaints := run("vgck", g.name); complaints != "" {
		t.Errorf("vgck says: %s", complaints)
	}
	// The devices that LVM2 activated were not touched.
	now := g.tables()
	for name := range tables {
		if now[name] != tables[name] {
			t.Errorf("device %s was\n\t%s\nbut is\n\t%s", name, tables[name], now[name])
		}
	}
	for name, path := range map[string]string{"origin": origin, "taken": snapshot} {
		if err := p.DeleteVolume(ctx, name); !errors.Is(err, pool.ErrPrecondition) {
			t.Errorf("deleting LVM2's volume: %v, want it refused", err)
		}
		if err := p.Deactivate(ctx, name); err != nil {
			t.Errorf("deactivating LVM2's volume: %v, want success without effect", err)
		}
		if got, err := p.Activate(ctx, name); err != nil || !same(got, path) {
			t.Errorf("%s is used as %s: %v", path, got, err)
		}
		if err := p.DeleteSnapshot(ctx, name); err != nil {
			t.Errorf("deleting LVM2's snapshot: %v, want success without effect", err)
		}
	}
	g.close()
	g.open()
	g.ok(g.pool.DeleteSnapshot(ctx, "ours-0"))
	g.ok(g.pool.DeleteVolume(ctx, "ours"))
	g.settled()
	g.close()
	g.sameBackup("deleting the driver's volumes", rest, lvs)
	g.sameTables("after the driver's volumes were deleted", g.tables(), tables)
	is := g.extents()
	for what := range data {
		if is[what] != data[what] {
			t.Errorf("%s has other bytes", what)
		}
	}
	g.write(origin, 1, 'O')
	if got := g.first(origin, 2) + g.first(snapshot, 1); got != "OOo" {
		t.Errorf("LVM2's volume and snapshot have %s", got)
	}
}

// TestForeign_unknownType: the pool works beside a logical volume of a type that the
// installed LVM2 does not know, and with which LVM2 would not write the group.
func TestForeign_unknownType(t *testing.T) {
	g := newForeignGroup(t, unknown)
	g.scribble()
	rest, lvs := g.backup()
	if !strings.Contains(lvs["later"], "magic_key") {
		t.Fatalf("LVM2's backup of the unknown type has\n%s", lvs["later"])
	}
	sum := func() [32]byte {
		f, err := os.Open(g.disks[0])
		g.ok(err)
		defer f.Close()
		b := make([]byte, 20<<20) // extents 100 to 104
		_, err = f.ReadAt(b, 1<<20+100*4<<20)
		g.ok(err)
		return sha256.Sum256(b)
	}
	before := sum()
	g.exercise()
	g.close()
	g.sameBackup("the pool's operations", rest, lvs)
	if _, complaints := run("vgck", g.name); !benign(complaints) {
		t.Errorf("vgck says: %s", complaints)
	}
	if sum() != before {
		t.Error("the unknown type's extents have other bytes")
	}
}

// same reports whether two paths lead to the same device.
func same(a, b string) bool {
	var x, y unix.Stat_t
	return unix.Stat(a, &x) == nil && unix.Stat(b, &y) == nil && x.Rdev == y.Rdev
}
