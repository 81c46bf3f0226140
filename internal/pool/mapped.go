package pool

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// LVM2's commands can free extents that a device of the driver still maps, because LVM2
// knows only its own devices of a logical volume. A new owner of these extents would share
// them with the former owner. So the driver asks for the kernel's tables before it allocates or
// wipes extents.

// mapsOnce returns the mappings for edits. The committer asks the kernel once in a batch,
// with LVM2's lock held, and again if anew is set.
func (g *group) mapsOnce(v *view, anew bool) (all []catalog.Mapping, err error) {
	if g.maps == nil || anew {
		g.maps, err = g.mapped(v)
	}
	return g.maps, err
}

// mappings lists the parts of the group's physical volumes that the kernel's devices map.
// It leaves out flat stores whose devices are known to have the right table. Their tables
// are long, and they map only extents that the metadata has in use.
func (p *Pool) mappings(v *view) ([]catalog.Mapping, error) {
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

// mappingsBy is mappings with a function that returns a device's table. A table may be
// unreadable, for example if a device of another program has an unknown target. The kernel
// still tells the disks below the device, and mappingsBy then reports these disks as mapped
// as a whole. It does not ask for devices that lie on none of the group's disks.
func (p *Pool) mappingsBy(v *view, tableOf func(name string) (dm.Table, error)) ([]catalog.Mapping, error) {
	pvs := map[dm.Device]int{}
	for i, pv := range v.VG.PVs {
		if pv.Missing() {
			continue
		}
		pvs[diskOf(pv)] = i
	}
	all, err := p.dm.List()
	if err != nil {
		return nil, err
	}
	out, on := []catalog.Mapping{}, holders("/sys", pvs, all)
	for _, e := range all {
		if on != nil && !on[e.Device.Minor] {
			continue
		}
		table, unread := tableOf(e.Name)
		if errors.Is(unread, dm.ErrNotFound) { // the device was removed or renamed in the meantime
			continue
		}
		if unread != nil {
			below, err := p.dm.Deps(e.Name)
			if errors.Is(err, dm.ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("reading what device %s maps: %w", e.Name, errors.Join(unread, err))
			}
			for _, d := range below {
				if i, ours := pvs[d]; ours {
					out = append(out, catalog.Mapping{Device: e.Name, UUID: e.UUID, Unread: unread, Range: lvm2.Range{PV: i, Count: v.VG.PVs[i].PECount}})
				}
			}
			continue
		}
		for _, s := range table {
			for _, a := range areas(s) {
				if i, ours := pvs[a.Device]; ours {
					if r := v.ExtentsAt(i, a.Offset, a.length); r.Count > 0 {
						out = append(out, catalog.Mapping{Device: e.Name, UUID: e.UUID, Unread: nil, Range: r})
					}
				}
			}
		}
	}
	return out, nil
}

// holders returns the minor numbers of the mapped devices that lie on the given disks by an
// active or a loaded table. The kernel makes the links in sysfs before it accepts a table.
// holders returns nil if sysfs cannot be read, or does not describe the kernel with the
// devices all; then any device may lie on the disks.
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

// describes reports whether sysfs belongs to the kernel with the devices all: it must have
// one of them. A device without a UUID proves nothing.
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

// area is a piece of a device that another device lies on.
type area struct {
	dm.Area
	length size.Sectors
}

// areas returns the pieces of devices that a segment of a table lies on. In the parameters of
// an unknown target, areas takes each word that looks like a device, and a number after
// the word as the offset.
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

// mappedByOthers returns an error if a device that does not belong to lv maps extents of lv.
func (v *view) mappedByOthers(lv *lvm2.LV, mapped []catalog.Mapping) error {
	own, err := catalog.Physical(lv)
	if err != nil {
		return err
	}
	set := catalog.NewRangeSet(own...)
	for _, m := range mapped {
		if id, _, ok := catalog.SplitUUID(v.VG.ID, m.UUID); ok && id == string(lv.ID) {
			continue
		}
		if len(catalog.NewRangeSet(m.Range).Intersect(set)) == 0 {
			continue
		}
		if m.Unread != nil {
			return fmt.Errorf("%w: device %s may map its extents, because its table cannot be read: %w; if nothing needs the device, remove it with dmsetup remove", ErrInUse, m.Device, m.Unread)
		}
		return fmt.Errorf("%w: device %s still maps its extents; if nothing needs the device, remove it with dmsetup remove", ErrInUse, m.Device)
	}
	return nil
}
