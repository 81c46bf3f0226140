package lvm2

import (
	"fmt"
	"slices"
	"time"
)

// Search defines where to look for a volume group. The metadata on a device cannot
// always be trusted: a user who may write to a block device can write metadata with
// the name, or even the ids, of the host's volume group to it.
//
// A Store calls the functions whenever it has to find the volume group again, one at
// a time, with its own lock held: they must not call the Store.
type Search struct {
	// IDs are the ids that the volume group may have; none: any id.
	IDs []ID
	// Devices lists the devices whose metadata is trusted. nil: the metadata of all
	// devices of Others is trusted.
	Devices func() ([]string, error)
	// Others lists the devices among which FindVG looks for the physical volumes
	// that the trusted metadata names and that Devices does not list.
	Others func() ([]string, error)
	// Named reports whether a person has named the device for this volume group. If
	// a physical volume was used by a map, such as a multipath map, that does not
	// exist, FindVG uses a disk below the map only if the disk is named. nil: all
	// devices are named.
	Named func(device string) bool
	// Seen describes the devices that exist. While the description stays the same,
	// the Store looks for missing devices less and less often. nil: at each Read.
	Seen func() string
	// Listed reports whether a device of Others may be used as the physical volume
	// pv, see Host.Listed. nil: every device.
	Listed func(device string, pv ID) bool
}

func (s Search) listed(p *disk) bool { return s.Listed == nil || s.Listed(p.path, p.label.id) }

// fixed returns a Search of the devices, and of the paths in the metadata.
func fixed(devices []string) Search {
	return Search{Devices: func() ([]string, error) { return devices, nil }}
}

// otherLimit is how long a device of Search.Others may take to show what is on it. A
// disk that has nothing to do with the volume group must not delay it for longer. A
// variable for the tests.
var otherLimit = 5 * time.Second

// addAll adds the devices that list returns. It skips a device that does not answer
// within limit; 0 is no limit.
func (f *finder) addAll(list func() ([]string, error), open map[identity]*device, limit time.Duration) error {
	if list == nil {
		return nil
	}
	paths, err := list()
	if err != nil {
		return err
	}
	if limit != 0 {
		f.addOthers(paths, open, limit)
		return nil
	}
	for _, path := range paths {
		f.add(path, open, 0)
	}
	return nil
}

// dropUnlisted drops the devices that are not in lvm2's devices file.
func (f *finder) dropUnlisted(name string, search Search) {
	f.disks = slices.DeleteFunc(f.disks, func(p *disk) bool {
		if search.listed(p) {
			return false
		}
		if slices.ContainsFunc(p.areas, func(a *metadataArea) bool { return a.about.name == name }) {
			f.unlisted = append(f.unlisted, fmt.Errorf("device %s has a volume group with the name, but is not in lvm2's devices file; add the device with lvmdevices", p.path))
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

// addMembers adds those of the other devices that are missing physical volumes of
// vg.
func (f *finder) addMembers(vg *VG, search Search, open map[identity]*device) error {
	known := slices.Clone(f.disks)
	if err := f.addAll(search.Others, open, otherLimit); err != nil {
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

// dropTwins drops a device that shows the same physical volume as another device, if
// it is certain which of the two is the physical volume, see before.
func (f *finder) dropTwins() {
	f.disks = slices.DeleteFunc(slices.Clone(f.disks), func(p *disk) bool {
		return slices.ContainsFunc(f.disks, func(q *disk) bool { return p != q && p.label.id == q.label.id && q.before(p) })
	})
}

// before reports whether p, and not q, is the physical volume whose id both have: p
// is made of q, or q is a loop device on p, or only p is in use by the kernel.
func (p *disk) before(q *disk) bool {
	switch {
	case p.above(q.device), q.over(p.device, true):
		return true
	case q.above(p.device), p.over(q.device, true):
		return false
	}
	return p.inUse() && !q.inUse()
}
