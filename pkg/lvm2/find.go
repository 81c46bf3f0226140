package lvm2

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// finder collects physical volumes and finds the volume group that they form.
type finder struct {
	disks    []*disk
	parts    []part       // devices that show a physical volume but are a part of another device
	used     map[ID]place // the last devices of physical volumes
	under    map[ID]error // PV.Part of missing physical volumes, from an earlier search
	opened   []*device    // closed by close
	waits    *waits       // for these devices
	other    *waits       // for devices that are looked at for a limited time
	failed   []error      // devices that could not be read
	unlisted []error      // devices with the volume group that lvm2's devices file does not list
	problems []error      // problems of the volume group that was found
}

func (f *finder) close() {
	for _, d := range f.opened {
		d.file.Close()
	}
}

// add reads a device, and waits for it for at most limit; 0 is no limit. It uses a
// device from open without opening the device again: udev probes a device whenever a
// writer closes it. It does nothing for a device that was already added under another
// path.
func (f *finder) add(path string, open map[identity]*device, limit time.Duration) {
	var p *disk
	id, err := identifyPath(path)
	switch {
	case err == nil && f.seen(id):
		return
	case err == nil && open[id] != nil:
		p, err = inspect(open[id])
	default:
		p, err = f.looked(f.look(path, limit))
	}
	f.found(p, err)
}

// found adds the result of a look at a device.
func (f *finder) found(p *disk, err error) {
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.failed = append(f.failed, err)
	}
	if p == nil {
		return
	}
	why := p.partOf()
	if u, known := f.used[p.label.id]; why == nil && known {
		why = u.taken(p.device)
	}
	if why != nil {
		f.parts = append(f.parts, part{p, why})
		return
	}
	f.disks = append(f.disks, p)
}

// identifyPath identifies a device without opening it.
func identifyPath(path string) (identity, error) {
	info, err := os.Stat(path)
	if err != nil {
		return identity{}, err
	}
	return identify(info)
}

func (f *finder) seen(id identity) bool {
	return slices.ContainsFunc(f.disks, func(p *disk) bool { return p.device.id == id }) ||
		slices.ContainsFunc(f.parts, func(p part) bool { return p.device.id == id })
}

// areas calls yield for every metadata area.
func (f *finder) areas(yield func(*metadataArea) bool) {
	for _, p := range f.disks {
		for _, a := range p.areas {
			if !yield(a) {
				return
			}
		}
	}
}

// newest returns, for each volume group id, the area with the newest good text. Only
// that text has the volume group's current name: an older text may be from before a
// rename.
func (f *finder) newest() map[ID]*metadataArea {
	best := map[ID]*metadataArea{}
	for a := range f.areas {
		if a.text == nil || a.about.id == "" {
			continue
		}
		if b := best[a.about.id]; b == nil || a.about.seqno > b.about.seqno {
			best[a.about.id] = a
		}
	}
	return best
}

// group searches for the volume group and returns it with the devices of its physical
// volumes. id is the volume group's id, and empty if it is not known yet.
func (f *finder) group(name string, id ID, search Search, open map[identity]*device) (*VG, []*disk, error) {
	if err := f.addAll(search.Devices, open, 0); err != nil {
		return nil, nil, err
	}
	looked := search.Devices == nil
	if looked {
		if err := f.addAll(search.Others, open, otherLimit); err != nil {
			return nil, nil, err
		}
		f.dropUnlisted(name, search)
	}
	for {
		f.dropTwins()
		known := len(f.disks)
		f.problems = nil
		vg, err := f.vg(name, id, search.IDs)
		if err != nil {
			return nil, nil, err
		}
		if !looked && search.Others != nil && f.lacks(vg) {
			looked = true
			if err := f.addMembers(vg, search, open); err != nil {
				return nil, nil, err
			}
			continue
		}
		members, err := f.members(vg, search, open)
		if err != nil || len(f.disks) == known {
			return vg, members, err
		}
		// A device that was found only through the metadata may have newer
		// metadata.
	}
}

// vg returns the volume group with the name. Its id must be id or, if id is empty,
// one of ids; if both are empty, it may have any id.
func (f *finder) vg(name string, id ID, ids []ID) (*VG, error) {
	var chosen *metadataArea
	var namesakes []error
	for vgID, a := range f.newest() {
		switch {
		case a.about.name != name:
		case id != "" && vgID != id:
			namesakes = append(namesakes, fmt.Errorf("volume group %v now has the name", vgID))
		case id == "" && len(ids) > 0 && !slices.Contains(ids, vgID):
			namesakes = append(namesakes, fmt.Errorf("the volume group with the name on %s has the unexpected id %v", a.dev.path, vgID))
		case chosen != nil:
			return nil, fmt.Errorf("%v and %v: %w; rename one of them by its id with vgrename", chosen.about.id, vgID, ErrDuplicateVG)
		default:
			chosen = a
		}
	}
	if chosen == nil {
		f.problems = append(f.problems, namesakes...)
		return nil, f.notFound(name)
	}
	if err := f.consistent(chosen); err != nil {
		return nil, err
	}
	vg, err := ParseVG(chosen.text)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", chosen.dev.path, err)
	}
	vg.source = source{chosen.header.committed.crc, chosen.header.committed.size}
	return vg, nil
}

// partsOf returns the reasons why devices are only parts of other devices. It selects
// a device if is returns true for one of its metadata areas, or for a nil area.
func (f *finder) partsOf(is func(a *metadataArea, pv ID) bool) (errs []error) {
	for _, p := range f.parts {
		if slices.ContainsFunc(p.areas, func(a *metadataArea) bool { return is(a, p.label.id) }) || is(nil, p.label.id) {
			errs = append(errs, p.why)
		}
	}
	return errs
}

// notFound returns the error for a volume group that was not found. It distinguishes
// a volume group that does not exist from a volume group that may be hidden by
// damage, or of which only parts of a disk are present.
func (f *finder) notFound(name string) error {
	if errs := f.partsOf(func(a *metadataArea, _ ID) bool { return a != nil && a.about.name == name }); len(errs) > 0 {
		return errors.Join(append(errs, f.failed...)...)
	}
	errs := slices.Concat(f.problems, f.unlisted, f.failed)
	newest := f.newest()
	for a := range f.areas {
		// The name in a damaged text may itself be damaged. An id with a good text
		// elsewhere belongs to another volume group.
		if a.err != nil && newest[a.about.id] == nil {
			errs = append(errs, a.err)
		}
	}
	if err := errors.Join(errs...); errors.Is(err, ErrDamaged) {
		return fmt.Errorf("none of the devices has good metadata of it: %w; vgcfgrestore or vgck --updatemetadata may repair it", err)
	}
	if len(errs) == 0 {
		return fmt.Errorf("none of the devices belongs to it: %w", ErrNoTrace)
	}
	return fmt.Errorf("none of the devices belongs to it: %w", errors.Join(append(errs, ErrNotFound)...))
}

// consistent returns an error if the texts of the volume group contradict each other.
func (f *finder) consistent(chosen *metadataArea) error {
	for a := range f.areas {
		if a.about.id != chosen.about.id {
			continue
		}
		mine, its := chosen.header.committed, a.header.committed
		switch {
		case a.text == nil && a.about.seqno > chosen.about.seqno:
			return fmt.Errorf("the newest metadata, seqno %d on device %s, is unreadable, and device %s has seqno %d: %w; vgck --updatemetadata restores the older", a.about.seqno, a.dev.path, chosen.dev.path, chosen.about.seqno, ErrDamaged)
		case a.text == nil:
		case a.about.seqno == chosen.about.seqno && (its.crc != mine.crc || its.size != mine.size):
			return fmt.Errorf("devices %s and %s have different metadata with the same seqno %d: %w; vgck --updatemetadata repairs it", chosen.dev.path, a.dev.path, a.about.seqno, ErrDamaged)
		case a.about.seqno < chosen.about.seqno:
			f.problems = append(f.problems, fmt.Errorf("device %s has old metadata of volume group %s, seqno %d instead of %d, which the next change rewrites", a.dev.path, chosen.about.name, a.about.seqno, chosen.about.seqno))
		}
	}
	return nil
}

// members finds the devices of the physical volumes and sets their paths in vg. If
// search.Others is nil, members also tries the paths in the metadata.
func (f *finder) members(vg *VG, search Search, open map[identity]*device) ([]*disk, error) {
	hints := search.Others == nil
	var members []*disk
	for _, pv := range vg.PVs {
		p, err := f.disk(pv.ID)
		if p == nil && err == nil && hints && filepath.IsAbs(pv.hint) {
			// The device is not in the search; vgextend may have added it.
			f.add(pv.hint, open, otherLimit)
			p, err = f.disk(pv.ID)
		}
		if err != nil {
			return nil, err
		}
		if p != nil && search.Named != nil && p.belowMap(pv) && !search.Named(p.path) {
			pv.part = fmt.Errorf("device %s is %w: the physical volume was used by %s, which does not exist", p.path, ErrPart, pv.hint)
			f.problems = append(f.problems, fmt.Errorf("device %s has physical volume %v, which was used by %s: %w; if that device is gone for good, name device %s in the configuration", p.path, pv.ID, pv.hint, ErrPart, p.path))
			continue
		}
		if p == nil {
			pv.part = errors.Join(f.partsOf(func(_ *metadataArea, id ID) bool { return id == pv.ID })...)
			if pv.part == nil {
				pv.part = f.under[pv.ID]
			}
			f.problems = append(append(f.problems, pv.notFound()), f.failed...)
			continue
		}
		for _, a := range p.areas {
			if a.err != nil {
				f.problems = append(f.problems, a.err)
			}
			if a.text != nil && a.about.id != vg.ID {
				return nil, fmt.Errorf("device %s is a physical volume of it, but has metadata of volume group %s (%v): %w", p.path, a.about.name, a.about.id, ErrDamaged)
			}
		}
		if end := vg.Offset(pv, pv.PECount).Bytes(); end > p.size {
			f.problems = append(f.problems, fmt.Errorf("device %s has %d bytes, but its physical volume needs %d", p.path, p.size, end))
		}
		pv.Device, pv.BlockSize, pv.at = p.path, p.unit, p.id
		members = append(members, p)
	}
	return members, nil
}

// disk returns the device with a physical volume id, and nil if there is none.
func (f *finder) disk(id ID) (*disk, error) {
	var found *disk
	for _, p := range f.disks {
		switch {
		case p.label.id != id:
		case found != nil:
			return nil, fmt.Errorf("devices %s and %s are both physical volume %v: %w; remove one device, or change its id with vgimportclone", found.path, p.path, id, ErrDuplicatePV)
		default:
			found = p
		}
	}
	return found, nil
}
