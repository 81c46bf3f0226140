package lvm2

import (
	"fmt"
	"slices"
)

// Search tells where a volume group is looked for. What is on a disk is not
// always the host's own: whoever may write a block device of the host can put
// metadata on it that has the name, or even the ids, of the host's volume group.
type Search struct {
	// IDs are those that the volume group may have; none: any.
	IDs []ID
	// Devices lists the devices that were chosen for it: only what they say is
	// believed. nil: none were chosen, all of Others are.
	Devices func() ([]string, error)
	// Others lists the devices among which further physical volumes are looked
	// for, by the ids that the metadata names.
	Others func() ([]string, error)
	// Named says that somebody named that device itself for it, as opposed to one
	// that was found. nil: all were named.
	Named func(device string) bool
	// Seen describes the devices that there are; as long as it stays the same,
	// those that are missing are looked for ever less often. nil: always.
	Seen func() string
	// Listed is called with what Others lists; nil takes all of it.
	Listed func(device string, pv ID) bool
}

func (s Search) listed(p *disk) bool { return s.Listed == nil || s.Listed(p.path, p.label.id) }

// fixed is a Search on these devices, and on those that lvm2 noted for members.
func fixed(devices []string) Search {
	return Search{Devices: func() ([]string, error) { return devices, nil }}
}

// addAll looks at what list lists.
func (f *finder) addAll(list func() ([]string, error), open map[identity]*device) error {
	if list == nil {
		return nil
	}
	paths, err := list()
	if err != nil {
		return err
	}
	for _, path := range paths {
		f.add(path, open)
	}
	return nil
}

// dropUnlisted forgets the devices that are not in lvm2's devices file.
func (f *finder) dropUnlisted(name string, search Search) {
	f.disks = slices.DeleteFunc(f.disks, func(p *disk) bool {
		if search.listed(p) {
			return false
		}
		if slices.ContainsFunc(p.areas, func(a *metadataArea) bool { return a.about.name == name }) {
			f.unlisted = append(f.unlisted, fmt.Errorf("device %s has it and is not in lvm2's devices file: add it there with lvmdevices", p.path))
		}
		return true
	})
}

// lacks reports whether a physical volume of vg was not found.
func (f *finder) lacks(vg *VG) bool {
	return slices.ContainsFunc(vg.PVs, func(pv *PV) bool {
		return !slices.ContainsFunc(f.disks, func(p *disk) bool { return p.label.id == pv.ID })
	})
}

// addMembers looks among the other devices for the physical volumes of vg that
// were not found, and forgets all else that it meets.
func (f *finder) addMembers(vg *VG, search Search, open map[identity]*device) error {
	known := slices.Clone(f.disks)
	if err := f.addAll(search.Others, open); err != nil {
		return err
	}
	f.disks = slices.DeleteFunc(f.disks, func(p *disk) bool {
		if slices.Contains(known, p) {
			return false
		}
		is := func(q *disk) bool { return q.label.id == p.label.id }
		return vg.PVIndex(p.label.id) < 0 || slices.ContainsFunc(known, is) || !search.listed(p)
	})
	return nil
}

// dropTwins drops devices that show the physical volume of another one, where it
// is certain which of the two it is: what is made of the other, what a loop
// device shows, what the kernel has in use.
func (f *finder) dropTwins() {
	f.disks = slices.DeleteFunc(slices.Clone(f.disks), func(p *disk) bool {
		return slices.ContainsFunc(f.disks, func(q *disk) bool { return p != q && p.label.id == q.label.id && q.before(p) })
	})
}

// before reports whether p rather than q is the physical volume whose id both have.
func (p *disk) before(q *disk) bool {
	switch {
	case p.above(q.device), q.over(p.device, true):
		return true
	case q.above(p.device), p.over(q.device, true):
		return false
	}
	return p.inUse() && !q.inUse()
}
