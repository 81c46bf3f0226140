package pool

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// paperGroup is a volume group without a disk, with extents of 4 MiB.
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
	return &paperGroup{T: t, edit: &edit{Edit: &catalog.Edit{View: newView(vg, nil).View}}}
}

func (g *paperGroup) check(err error) {
	g.Helper()
	if err != nil {
		g.Fatal(err)
	}
	g.View = newView(g.VG, nil).View
}

func (g *paperGroup) take(n lvm2.Extents) lvm2.Range {
	r := lvm2.Range{Start: g.next, Count: n}
	g.next += n
	return r
}

// volume adds a volume of n extents.
func (g *paperGroup) volume(name string, n lvm2.Extents, tags ...string) {
	lv := catalog.NewLV(name, "volume", append([]string{catalog.Tag("name", name), catalog.Tag("mode", string(Block))}, tags...)...)
	lv.Segments = catalog.AppendExtents(nil, g.take(n))
	g.check(g.Put(lv))
}

// cut adds a layer with a store of n extents to a volume, which becomes the live one.
func (g *paperGroup) cut(of, name string, n lvm2.Extents) {
	o := g.VolumeByLV(of)
	order := o.NextOrder()
	if former := o.Live(); former != nil {
		g.check(g.Freeze(former, false))
		o = g.VolumeByLV(of)
	}
	length := g.BytesOf(o.LV)
	lv := catalog.NewLV(name, "layer", catalog.Tag("of", string(o.LV.ID)), catalog.Tag("name", name), catalog.Tag("order", fmt.Sprint(order)),
		catalog.Tag("created", "1"), catalog.Tag("length", fmt.Sprint(uint64(length.Sectors()))), catalog.Tag("chunk", "128"))
	lv.Segments = catalog.AppendExtents(nil, g.take(n))
	g.check(g.Put(lv))
	g.check(g.Join(g.VolumeByLV(of), lv, length, 128))
}

// fork adds a volume of n extents that reads through a layer, with a store of one extent.
func (g *paperGroup) fork(name, from string, n lvm2.Extents, hydrated string) {
	g.volume(name, n, catalog.Tag("copy", string(g.Snapshots.Get(from).LV.ID)), catalog.Tag("hydrated", hydrated))
	store := catalog.NewLV("fork-"+name, "fork", catalog.Tag("of", string(g.VolumeByLV(name).LV.ID)), catalog.Tag("chunk", "128"))
	store.Segments = catalog.AppendExtents(nil, g.take(1))
	g.check(g.Put(store))
}

// reader adds a volume that shows a layer; with tags, a transient volume.
func (g *paperGroup) reader(name, from string, tags ...string) {
	l := g.Snapshots.Get(from)
	lv := catalog.NewLV(name, "volume", append([]string{catalog.Tag("name", name), catalog.Tag("mode", string(Block)), catalog.Tag("reads", string(l.LV.ID))}, tags...)...)
	n := g.Extents(l.Length.Bytes())
	if len(tags) > 0 {
		lv.Segments = catalog.AppendExtents(nil, g.take(n))
	} else {
		lv.Status = []string{lvm2.StatusRead, lvm2.StatusVisible}
		lv.Segments = []lvm2.Segment{{Count: n, Type: lvm2.TypeError}}
	}
	g.check(g.Put(lv))
}

// drop deletes a snapshot, and layers that nothing needs without it.
func (g *paperGroup) drop(name string) {
	l := g.Snapshots.Get(name)
	c := l.LV.Clone()
	c.Tags = catalog.DropTags(c.Tags, "name")
	g.check(g.Put(c))
	g.check(g.Prune(g.Layers.Get(l.LV.ID)))
}

// grow adds n extents to a logical volume.
func (g *paperGroup) grow(lv string, n lvm2.Extents) {
	c := g.VG.LV(lv).Clone()
	c.Segments = catalog.AppendExtents(c.Segments, g.take(n))
	g.check(g.Put(c))
}

func (g *paperGroup) family(name string) []*catalog.Volume {
	root := g.Root(name)
	return g.Members()[root]
}

// inUseBy returns a use in which volumes are active and layers are read.
func (g *paperGroup) inUseBy(volumes []string, layers ...string) use {
	u := use{active: map[lvm2.ID]bool{}, content: map[lvm2.ID]bool{}, read: map[lvm2.ID]bool{}}
	for _, name := range volumes {
		u.active[g.VolumeByLV(name).LV.ID] = true
	}
	for _, name := range layers {
		u.read[g.Snapshots.Get(name).LV.ID] = true
	}
	return u
}

// lines returns the wanted devices, one line each, with names instead of numbers.
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
