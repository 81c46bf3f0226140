package lvm2

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Range is a range of extents of a physical volume.
type Range struct {
	PV           int // index in VG.PVs
	Start, Count Extents
}

// Add appends a new logical volume to the volume group. The caller must not change
// lv afterwards.
//
// Errors: ErrExists (the name or id), ErrInvalid.
func (vg *VG) Add(lv *LV) error {
	if vg.byID.Has(lv.ID) {
		return fmt.Errorf("volume group %s: a logical volume with id %v: %w", vg.Name, lv.ID, ErrExists)
	}
	if vg.byName.Has(lv.Name) {
		return fmt.Errorf("volume group %s: logical volume %s: %w", vg.Name, lv.Name, ErrExists)
	}
	if err := vg.seal(lv); err != nil {
		return err
	}
	vg.LVs = append(vg.LVs, lv)
	vg.enter(lv)
	return nil
}

// enter adds an LV, which is in LVs, to what is derived from LVs.
func (vg *VG) enter(lv *LV) {
	vg.byName.Set(lv.Name, lv)
	vg.byID.Set(lv.ID, lv)
	vg.lvText += lineSize(lv.text)
	for a := range lv.striped {
		vg.placed.Set(a.key(), append(slices.Clone(vg.placed.Get(a.key())), use{a, lv}))
	}
	vg.note(lv.ID, "")
}

// leave removes an LV from what is derived from LVs.
func (vg *VG) leave(lv *LV) {
	vg.byName.Delete(lv.Name)
	vg.byID.Delete(lv.ID)
	vg.lvText -= lineSize(lv.text)
	for a := range lv.striped {
		others := slices.DeleteFunc(slices.Clone(vg.placed.Get(a.key())), func(u use) bool { return u.lv == lv })
		if vg.placed.Set(a.key(), others); len(others) == 0 {
			vg.placed.Delete(a.key())
		}
	}
	vg.note(lv.ID, lv.Name)
}

// note records that an LV has changed. former is the name that it had, "" if it is new.
func (vg *VG) note(id ID, former string) {
	if vg.changed == nil {
		vg.changed = map[ID]struct{}{}
	}
	if vg.unchecked == nil {
		vg.unchecked = map[ID]string{}
	}
	vg.changed[id], vg.edition = struct{}{}, newEdition()
	vg.unchecked[id] = cmp.Or(vg.unchecked[id], former) // the first name, because the LV passed with it
}

// Replace replaces the logical volume that has the id of lv. The name may differ.
// The caller must not change lv afterwards.
//
// Errors: ErrNotFound, ErrExists (the name), ErrInvalid, ErrLocked,
// ErrForeignSegment.
func (vg *VG) Replace(lv *LV) error {
	old := vg.byID.Get(lv.ID)
	if old == nil {
		return fmt.Errorf("volume group %s: logical volume %s with id %v: %w", vg.Name, lv.Name, lv.ID, ErrNotFound)
	}
	if err := vg.checkEditable(old); err != nil {
		return err
	}
	if other := vg.byName.Get(lv.Name); other != nil && other != old {
		return fmt.Errorf("volume group %s: logical volume %s: %w", vg.Name, lv.Name, ErrExists)
	}
	if err := vg.seal(lv); err != nil {
		return err
	}
	vg.LVs[slices.Index(vg.LVs, old)] = lv
	vg.leave(old)
	vg.enter(lv)
	return nil
}

// Remove removes the logical volume with the id from the volume group.
//
// Errors: ErrNotFound, ErrLocked, ErrForeignSegment.
func (vg *VG) Remove(id ID) error {
	lv := vg.byID.Get(id)
	if lv == nil {
		return fmt.Errorf("volume group %s: logical volume with id %v: %w", vg.Name, id, ErrNotFound)
	}
	if err := vg.checkEditable(lv); err != nil {
		return err
	}
	i := slices.Index(vg.LVs, lv)
	vg.LVs = slices.Delete(vg.LVs, i, i+1)
	vg.leave(lv)
	return nil
}

// checkEditable rejects logical volumes that lvm2 is working on, or whose segments
// this package does not understand.
func (vg *VG) checkEditable(lv *LV) error {
	if lv.moving() {
		return fmt.Errorf("logical volume %s/%s: %w by pvmove; wait until pvmove is done", vg.Name, lv.Name, ErrLocked)
	}
	for i := range lv.Segments {
		s := &lv.Segments[i]
		if !s.modelled() {
			return fmt.Errorf("logical volume %s/%s: %w %q; change it with the lvm2 tools", vg.Name, lv.Name, ErrForeignSegment, s.Type)
		}
	}
	if slices.Contains(vg.merging, lv.Name) {
		return fmt.Errorf("logical volume %s/%s: %w by lvconvert --merge; wait until the merge is done", vg.Name, lv.Name, ErrLocked)
	}
	return nil
}

// moving reports whether pvmove works on lv: lv is LOCKED and mapped to another
// logical volume. A logical volume that is only LOCKED is not being moved: LOCKED
// keeps lvm2's commands from changing it.
func (lv *LV) moving() bool {
	return slices.Contains(lv.Status, statusPVMove) || slices.Contains(lv.Status, StatusLocked) &&
		slices.ContainsFunc(lv.Segments, func(s Segment) bool {
			return slices.ContainsFunc(s.Stripes, func(to Stripe) bool { return to.PV < 0 })
		})
}

func (s *Segment) modelled() bool {
	return s.Type == TypeStriped || s.Type == TypeSnapshot || s.Type == TypeError
}

// seal checks a logical volume and sets its text. It does not check references to
// other logical volumes.
func (vg *VG) seal(lv *LV) error {
	if err := vg.checkNewLV(lv); err != nil {
		return fmt.Errorf("volume group %s: logical volume %s: %w", vg.Name, lv.Name, err)
	}
	if lv.text == "" {
		lv.text = lv.encode(vg.PVs)
	}
	return nil
}

func (vg *VG) checkNewLV(lv *LV) error {
	if _, err := ParseID(string(lv.ID)); err != nil {
		return err
	}
	hidden := len(lv.Segments) == 1 && lv.Segments[0].Type == TypeSnapshot
	if !hidden {
		if err := CheckLVName(vg.Name, lv.Name); err != nil {
			return err
		}
	} else if digits, ok := strings.CutPrefix(lv.Name, TypeSnapshot); !ok || digits == "" || strings.Trim(digits, "0123456789") != "" {
		return fmt.Errorf("the name of a snapshot's link must be \"snapshot\" and a number: %w", ErrInvalid)
	}
	if len(lv.Segments) == 0 {
		return fmt.Errorf("it has no segments: %w", ErrInvalid)
	}
	for _, tag := range lv.Tags {
		if err := CheckTag(tag); err != nil {
			return err
		}
	}
	if err := checkStatus("logical volume "+lv.Name, lv.Status, lvStatusWords); err != nil {
		return err
	}
	lv.sortSegments()
	for i := range lv.Segments {
		s := &lv.Segments[i]
		if err := s.checkShape(len(vg.PVs)); err != nil {
			return fmt.Errorf("segment %d: %w", i+1, err)
		}
	}
	return nil
}

// checkShape checks the conditions that encode and Validate rely on. pvs is the
// number of physical volumes.
func (s *Segment) checkShape(pvs int) error {
	switch {
	case s.Type == TypeStriped && len(s.Stripes) > 0 && s.Snapshot == nil:
	case s.Type == TypeSnapshot && len(s.Stripes) == 0 && s.Snapshot != nil:
	case s.Type == TypeError && len(s.Stripes) == 0 && s.Snapshot == nil:
	default:
		return fmt.Errorf("type %q does not fit its stripes or snapshot: %w", s.Type, ErrInvalid)
	}
	if s.Start > maxExtents || s.Count > maxExtents {
		return fmt.Errorf("%d extents from extent %d exceed LVM2's 32 bits: %w", s.Count, s.Start, ErrInvalid)
	}
	for _, stripe := range s.Stripes {
		if stripe.PV >= pvs || stripe.Start > maxExtents {
			return fmt.Errorf("a stripe begins at extent %d of physical volume number %d, which does not exist: %w", stripe.Start, stripe.PV, ErrInvalid)
		}
	}
	return nil
}

// Free returns the free extents, sorted by physical volume and start. Extents that a
// segment of an unknown type may use are not free. A physical volume that is missing
// or not allocatable has no free extents.
func (vg *VG) Free() []Range {
	used := vg.used()
	var free []Range
	i := 0
	for n, pv := range vg.PVs {
		next := Extents(0)
		add := func(end Extents) {
			if end > next && pv.Allocatable() {
				free = append(free, Range{n, next, end - next})
			}
		}
		for ; i < len(used) && used[i].area.pv == n; i++ {
			a := used[i].area
			add(min(a.start, pv.PECount))
			next = max(next, a.start+a.count)
		}
		add(pv.PECount)
	}
	return free
}

// key returns a key that orders areas by their begin. LVM2 counts extents in 32 bits.
func (a area) key() uint64 { return uint64(a.pv)<<32 | uint64(a.start) }

// use is an area and the logical volume that uses it.
type use struct {
	area area
	lv   *LV
}

// striped iterates over the areas of the striped segments of lv.
func (lv *LV) striped(yield func(area) bool) {
	for i := range lv.Segments {
		if s := &lv.Segments[i]; s.Type == TypeStriped {
			for a := range s.used {
				if !yield(a) {
					return
				}
			}
		}
	}
}

// used returns the areas that segments use or may use, sorted.
func (vg *VG) used() []use {
	all := make([]use, 0, len(vg.LVs))
	for _, lv := range vg.LVs {
		for i := range lv.Segments {
			for a := range lv.Segments[i].used {
				all = append(all, use{a, lv})
			}
		}
	}
	slices.SortFunc(all, func(a, b use) int {
		return cmp.Or(cmp.Compare(a.area.pv, b.area.pv), cmp.Compare(a.area.start, b.area.start))
	})
	return all
}
