package pool

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// LVM2's commands can free extents that a device of ours still maps: it knows its
// own devices of a logical volume, and no others. Given out they would show one
// tenant's bytes to another. So before extents are given out or wiped the kernel's tables are asked.

// mapping is a part of a physical volume that a device maps.
type mapping struct {
	device string
	uuid   string
	unread error // why the device's table cannot be read; then it may map any of the physical volume
	lvm2.Range
}

// mapsOnce is mappings for edits: the committer asks once in a batch, with LVM2's
// lock held, unless it wants to know anew.
func (g *group) mapsOnce(v *view, anew bool) (all []mapping, err error) {
	if g.maps == nil || anew {
		g.maps, err = g.mapped(v)
	}
	return g.maps, err
}

// mappings lists what the kernel's devices map of the group's physical volumes. It may
// leave out those of flat stores that map what the metadata say: these have long tables,
// and what they map are extents of logical volumes that are there.
func (p *Pool) mappings(v *view) ([]mapping, error) {
	known, err := p.flatsAsLoaded(v)
	if err != nil {
		return nil, err
	}
	return p.mappingsBy(v, func(name string) (dm.Table, error) {
		if known[name] {
			return nil, nil
		}
		return p.dm.Table(name)
	})
}

// mappingsBy does what mappings does, with what tells a device's table. Of a table
// that cannot be read, as of somebody else's device with a target that is not
// understood, the kernel still tells which devices it lies on: all of these may be mapped.
// Devices that lie on none of the group's disks are not asked.
func (p *Pool) mappingsBy(v *view, tableOf func(name string) (dm.Table, error)) ([]mapping, error) {
	pvs := map[dm.Device]int{}
	for i, pv := range v.vg.PVs {
		if pv.Missing() {
			continue
		}
		pvs[diskOf(pv)] = i
	}
	all, err := p.dm.List()
	if err != nil {
		return nil, err
	}
	out, on := []mapping{}, holders("/sys", pvs, all)
	for _, e := range all {
		if on != nil && !on[e.Device.Minor] {
			continue
		}
		table, unread := tableOf(e.Name)
		if errors.Is(unread, dm.ErrNotFound) { // it was removed, or renamed to what no metadata call for
			continue
		}
		if unread != nil {
			below, err := p.dm.Deps(e.Name)
			if errors.Is(err, dm.ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("looking at what device %s maps: %w", e.Name, errors.Join(unread, err))
			}
			for _, d := range below {
				if i, ours := pvs[d]; ours {
					out = append(out, mapping{e.Name, e.UUID, unread, lvm2.Range{PV: i, Count: v.vg.PVs[i].PECount}})
				}
			}
			continue
		}
		for _, s := range table {
			for _, a := range areas(s) {
				if i, ours := pvs[a.Device]; ours {
					if r := v.extentsAt(i, a.Offset, a.length); r.Count > 0 {
						out = append(out, mapping{e.Name, e.UUID, nil, r})
					}
				}
			}
		}
	}
	return out, nil
}

// holders returns the minor numbers of the mapped devices that lie on some disks, by a
// table that is in use or loaded: the kernel links them to these in sysfs before it takes
// the table. nil where that does not say, or is not the sysfs of the kernel that has
// the mapped devices all; then it may be any.
func holders(sysfs string, disks map[dm.Device]int, all []dm.ListEntry) map[uint32]bool {
	if !describes(sysfs, all) {
		return nil
	}
	out := map[uint32]bool{}
	for d := range disks {
		links, err := os.ReadDir(fmt.Sprintf("%s/dev/block/%v/holders", sysfs, d))
		if err != nil {
			return nil
		}
		for _, h := range links {
			number, mapped := strings.CutPrefix(h.Name(), "dm-")
			if minor, err := strconv.ParseUint(number, 10, 32); mapped && err == nil {
				out[uint32(minor)] = true
			}
		}
	}
	return out
}

// describes reports whether sysfs has one of the mapped devices, as where it is of the kernel
// that has them. Those without a UUID prove nothing.
func describes(sysfs string, all []dm.ListEntry) bool {
	for _, e := range all {
		if e.UUID == "" {
			continue
		}
		uuid, err := os.ReadFile(fmt.Sprintf("%s/dev/block/%v/dm/uuid", sysfs, e.Device))
		if err == nil {
			return strings.TrimSpace(string(uuid)) == e.UUID
		}
	}
	return false
}

// area is a piece of a device below another one.
type area struct {
	dm.Area
	length size.Sectors
}

// areas returns what a segment of a table lies on. Of a target that is not known
// it is what its parameters look like: a device and an offset.
func areas(s dm.Segment) []area {
	switch t := s.Target.(type) {
	case dm.Linear:
		return []area{{dm.Area(t), s.Length}}
	case dm.Striped:
		var out []area
		for _, a := range t.Stripes {
			out = append(out, area{a, s.Length / size.Sectors(max(1, len(t.Stripes)))})
		}
		return out
	}
	var out []area
	words := strings.Fields(s.Target.Params())
	for i, w := range words {
		d, err := dm.ParseDevice(w)
		if err != nil || !strings.Contains(w, ":") {
			continue
		}
		a := area{dm.Area{Device: d}, s.Length}
		if i+1 < len(words) {
			if n, err := strconv.ParseUint(words[i+1], 10, 63); err == nil {
				a.Offset = size.Sectors(n)
			}
		}
		out = append(out, a)
	}
	return out
}

// extentsAt returns the extents of a physical volume that a piece of its device touches.
func (v *view) extentsAt(pv int, from, length size.Sectors) lvm2.Range {
	p, extent := v.vg.PVs[pv], v.vg.ExtentSize
	end := from + length
	if end <= p.PEStart || length == 0 {
		return lvm2.Range{}
	}
	first := (max(from, p.PEStart) - p.PEStart) / extent
	last := (end - p.PEStart + extent - 1) / extent
	if first := lvm2.Extents(first); first < p.PECount {
		return lvm2.Range{PV: pv, Start: first, Count: min(lvm2.Extents(last), p.PECount) - first}
	}
	return lvm2.Range{}
}

// withoutMapped takes from the free extents those that a device still maps.
func (t *edit) withoutMapped() error {
	if t.asked || t.kernel == nil {
		return nil
	}
	for _, anew := range []bool{false, true} {
		all, err := t.kernel(t.view, anew)
		if err != nil {
			return err
		}
		t.asked, t.mapped = true, nil
		for _, m := range all {
			if len(newRangeSet(m.Range).intersect(t.free)) > 0 {
				t.mapped = append(t.mapped, m)
			}
		}
		if len(t.mapped) == 0 { // else an edit of the same batch may just have freed them, and taken their device away
			return nil
		}
	}
	for _, m := range t.mapped {
		t.free = t.free.subtract(newRangeSet(m.Range))
	}
	return nil
}

// stillMapped says which device keeps free extents from being given out.
func (t *edit) stillMapped() string {
	if len(t.mapped) == 0 {
		return ""
	}
	if m := t.mapped[0]; m.unread != nil {
		return fmt.Sprintf("; device %s may map others that are free, its table cannot be read: %v; dmsetup remove it if nothing needs it", m.device, m.unread)
	}
	return fmt.Sprintf("; device %s still maps others that are free, as after lvremove of what is in use: dmsetup remove it if nothing needs it", t.mapped[0].device)
}

// mappedByOthers returns an error if a device other than lv's own maps its extents.
func (v *view) mappedByOthers(lv *lvm2.LV, mapped []mapping) error {
	own, err := physical(lv)
	if err != nil {
		return err
	}
	set := newRangeSet(own...)
	for _, m := range mapped {
		if id, _, ok := splitUUID(v.vg.ID, m.uuid); ok && id == string(lv.ID) {
			continue
		}
		if len(newRangeSet(m.Range).intersect(set)) == 0 {
			continue
		}
		if m.unread != nil {
			return fmt.Errorf("%w: device %s may map its extents, its table cannot be read: %w; dmsetup remove it if nothing needs it", ErrInUse, m.device, m.unread)
		}
		return fmt.Errorf("%w: device %s still maps its extents: dmsetup remove it if nothing needs it", ErrInUse, m.device)
	}
	return nil
}
