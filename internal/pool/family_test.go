package pool

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// paperGroup is a volume group that tests make without a disk: extents of 4 MiB on disk 0:0.
type paperGroup struct {
	*testing.T
	*edit
	next lvm2.Extents
}

func newGroup(t *testing.T) *paperGroup {
	vg, err := lvm2.ParseVG([]byte("vg {\nid = \"gggggg-gggg-gggg-gggg-gggg-gggg-gggggg\"\nseqno = 5\nformat = \"lvm2\"\nstatus = [\"RESIZEABLE\", \"READ\", \"WRITE\"]\nflags = []\nextent_size = 8192\nmax_lv = 0\nmax_pv = 0\nmetadata_copies = 0\n" +
		"physical_volumes {\npv0 {\nid = \"pppppp-pppp-pppp-pppp-pppp-pppp-pppppp\"\ndevice = \"/dev/sda\"\nstatus = [\"ALLOCATABLE\"]\nflags = []\ndev_size = 40960000\npe_start = 2048\npe_count = 4990\n}\n}\n" +
		"}\ncontents = \"Text Format Volume Group\"\nversion = 1\n"))
	if err != nil {
		t.Fatal(err)
	}
	vg.PVs[0].Device = "/dev/sda"
	return &paperGroup{T: t, edit: &edit{view: newView(vg, nil)}}
}

func (g *paperGroup) check(err error) {
	g.Helper()
	if err != nil {
		g.Fatal(err)
	}
	g.view = newView(g.vg, nil)
}

func (g *paperGroup) take(n lvm2.Extents) lvm2.Range {
	r := lvm2.Range{Start: g.next, Count: n}
	g.next += n
	return r
}

// volume adds a volume of n extents.
func (g *paperGroup) volume(name string, n lvm2.Extents, tags ...string) {
	lv := newLV(name, roleVolume, append([]string{tag(tagName, name), tag(tagMode, string(Block))}, tags...)...)
	lv.Segments = appendExtents(nil, g.take(n))
	g.check(g.put(lv))
}

// cut adds a layer with a store of n extents to a volume, which becomes the live one.
func (g *paperGroup) cut(of, name string, n lvm2.Extents) {
	o := g.volumeByLV(of)
	order := o.nextOrder()
	if former := o.live(); former != nil {
		g.check(g.freeze(former, false))
		o = g.volumeByLV(of)
	}
	length := g.bytesOf(o.lv)
	lv := newLV(name, roleLayer, tag(tagOf, string(o.lv.ID)), tag(tagName, name), tag(tagOrder, fmt.Sprint(order)),
		tag(tagCreated, "1"), tag(tagLength, fmt.Sprint(uint64(length.Sectors()))), tag(tagChunk, "128"))
	lv.Segments = appendExtents(nil, g.take(n))
	g.check(g.put(lv))
	g.check(g.join(g.volumeByLV(of), lv, length, 128))
}

// fork adds a volume of n extents that reads through a layer, with a store of one.
func (g *paperGroup) fork(name, from string, n lvm2.Extents, hydrated string) {
	g.volume(name, n, tag(tagCopy, string(g.snapshots[from].lv.ID)), tag(tagHydrated, hydrated))
	store := newLV("fork-"+name, roleFork, tag(tagOf, string(g.volumeByLV(name).lv.ID)), tag(tagChunk, "128"))
	store.Segments = appendExtents(nil, g.take(1))
	g.check(g.put(store))
}

// reader adds a volume that shows a layer, or with tags a transient one.
func (g *paperGroup) reader(name, from string, tags ...string) {
	l := g.snapshots[from]
	lv := newLV(name, roleVolume, append([]string{tag(tagName, name), tag(tagMode, string(Block)), tag(tagReads, string(l.lv.ID))}, tags...)...)
	n := g.extents(l.length.Bytes())
	if len(tags) > 0 {
		lv.Segments = appendExtents(nil, g.take(n))
	} else {
		lv.Status = []string{lvm2.StatusRead, lvm2.StatusVisible}
		lv.Segments = []lvm2.Segment{{Count: n, Type: lvm2.TypeError}}
	}
	g.check(g.put(lv))
}

// drop takes a snapshot and what nothing needs then away.
func (g *paperGroup) drop(name string) {
	l := g.snapshots[name]
	c := l.lv.Clone()
	c.Tags = dropTags(c.Tags, tagName)
	g.check(g.put(c))
	g.check(g.prune(g.layers[l.lv.ID]))
}

// grow adds n extents to a logical volume.
func (g *paperGroup) grow(lv string, n lvm2.Extents) {
	c := g.vg.LV(lv).Clone()
	c.Segments = appendExtents(c.Segments, g.take(n))
	g.check(g.put(c))
}

func (g *paperGroup) family(name string) []*volume {
	root := g.root(name)
	return g.members()[root]
}

// inUseBy says that volumes are active and that layers are read.
func (g *paperGroup) inUseBy(volumes []string, layers ...string) use {
	u := use{active: map[lvm2.ID]bool{}, content: map[lvm2.ID]bool{}, read: map[lvm2.ID]bool{}}
	for _, name := range volumes {
		u.active[g.volumeByLV(name).lv.ID] = true
	}
	for _, name := range layers {
		u.read[g.snapshots[name].lv.ID] = true
	}
	return u
}

// lines returns what a family should have, a device a line, with names for numbers.
func (w *wantedSet) lines() []string {
	names := map[string]string{}
	for _, d := range w.devices {
		names[d.uuid] = strings.TrimPrefix(d.name, "vg-")
	}
	var out []string
	for _, d := range w.devices {
		access := map[bool]string{true: " ro"}[d.readOnly]
		none := func(string) (dm.Device, bool) { return dm.Device{}, false }
		table := strings.Join(d.table.text(none, func(uuid string) string { return names[uuid] }), "; ")
		out = append(out, fmt.Sprintf("%s%s: %s", names[d.uuid], access, table))
	}
	return out
}

func (g *paperGroup) expect(what string, got []string, want ...string) {
	g.Helper()
	if !slices.Equal(got, want) {
		g.Errorf("%s:\n%s\nwant:\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
