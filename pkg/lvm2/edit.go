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
	if vg.byID[lv.ID] != nil {
		return fmt.Errorf("volume group %s: a logical volume with id %v: %w", vg.Name, lv.ID, ErrExists)
	}
	if err := vg.seal(lv); err != nil {
		return err
	}
	vg.LVs = append(vg.LVs, lv)
	vg.byName[lv.Name], vg.byID[lv.ID] = lv, lv
	return nil
}

// Replace replaces the logical volume that has the id of lv. The name may differ.
// The caller must not change lv afterwards.
//
// Errors: ErrNotFound, ErrExists (the name), ErrInvalid, ErrLocked,
// ErrForeignSegment.
func (vg *VG) Replace(lv *LV) error {
	old := vg.byID[lv.ID]
	if old == nil {
		return fmt.Errorf("volume group %s: logical volume %s with id %v: %w", vg.Name, lv.Name, lv.ID, ErrNotFound)
	}
	if err := vg.checkEditable(old); err != nil {
		return err
	}
	delete(vg.byName, old.Name)
	if err := vg.seal(lv); err != nil {
		vg.byName[old.Name] = old
		return err
	}
	vg.LVs[slices.Index(vg.LVs, old)] = lv
	vg.byName[lv.Name], vg.byID[lv.ID] = lv, lv
	return nil
}

// Remove removes the logical volume with the id from the volume group.
//
// Errors: ErrNotFound, ErrLocked, ErrForeignSegment.
func (vg *VG) Remove(id ID) error {
	lv := vg.byID[id]
	if lv == nil {
		return fmt.Errorf("volume group %s: logical volume with id %v: %w", vg.Name, id, ErrNotFound)
	}
	if err := vg.checkEditable(lv); err != nil {
		return err
	}
	i := slices.Index(vg.LVs, lv)
	vg.LVs = slices.Delete(vg.LVs, i, i+1)
	delete(vg.byName, lv.Name)
	delete(vg.byID, id)
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
	if vg.byName[lv.Name] != nil {
		return fmt.Errorf("volume group %s: logical volume %s: %w", vg.Name, lv.Name, ErrExists)
	}
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
	used := vg.used(func(*Segment) bool { return true })
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

// use is an area and the logical volume that uses it.
type use struct {
	area area
	lv   *LV
}

// used returns the areas of the segments for which keep returns true, sorted.
func (vg *VG) used(keep func(*Segment) bool) []use {
	all := make([]use, 0, len(vg.LVs))
	for _, lv := range vg.LVs {
		for i := range lv.Segments {
			if s := &lv.Segments[i]; keep(s) {
				for a := range s.used {
					all = append(all, use{a, lv})
				}
			}
		}
	}
	slices.SortFunc(all, func(a, b use) int {
		return cmp.Or(cmp.Compare(a.area.pv, b.area.pv), cmp.Compare(a.area.start, b.area.start))
	})
	return all
}
