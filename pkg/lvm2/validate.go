package lvm2

import (
	"fmt"
	"slices"
	"strconv"
)

// maxSeqno is the last seqno: LVM2 counts in 32 bits and never reuses a seqno.
const maxSeqno = 1<<32 - 2

// Validate makes the checks that lvm2 makes before and after a commit, so that lvm2
// can read the metadata again: names, ids and tags are valid, segments have no gaps
// and lie inside their physical volumes, no extent is used twice, and the origin and
// store of each snapshot exist. Commit makes these checks for the LVs that have changed
// since they were last made, and for what they could break.
//
// Errors: ErrInvalid.
func (vg *VG) Validate() error {
	if err := vg.validate(); err != nil {
		return fmt.Errorf("volume group %s: %w", vg.Name, err)
	}
	return nil
}

func (vg *VG) validate() error {
	if err := vg.validateHead(); err != nil {
		return err
	}
	if err := vg.validateLVs(); err != nil {
		return err
	}
	for _, some := range vg.placed.All() {
		if err := vg.validateOverlap(some); err != nil {
			return err
		}
	}
	vg.checked, vg.unchecked = true, nil
	return nil
}

// validateChanged makes the checks of validate that can fail in a VG that passed before
// some LVs were changed. LVs and PVs are immutable. So an LV that has not changed can
// fail only if a name that it refers to is gone, if a changed LV uses its extents, or if
// there are too many LVs. Two LVs that have not changed do not overlap. So if two LVs
// overlap, a changed LV overlaps the area before or after one of its own.
func (vg *VG) validateChanged() error {
	if !vg.checked || vg.MaxLV > 0 {
		return vg.validate()
	}
	if err := vg.validateHead(); err != nil {
		return err
	}
	if err := vg.validateUnique(); err != nil {
		return err
	}
	again, gone := map[ID]*LV{}, map[string]bool{}
	for id, name := range vg.unchecked {
		if lv := vg.byID.Get(id); lv != nil {
			again[id] = lv
		}
		if name != "" && !vg.byName.Has(name) {
			gone[name] = true
		}
	}
	if len(gone) > 0 {
		for _, lv := range vg.LVs {
			if lv.refersTo(gone) {
				again[lv.ID] = lv
			}
		}
	}
	for _, lv := range again {
		if err := vg.validateAgain(lv); err != nil {
			return err
		}
	}
	vg.unchecked = nil
	return nil
}

// validateAgain checks an LV, and that neither it nor the area before one of its areas
// overlaps the next area.
func (vg *VG) validateAgain(lv *LV) error {
	if err := vg.validateLV(lv); err != nil {
		return err
	}
	for a := range lv.striped {
		if _, before, found := vg.placed.Before(a.key()); found {
			if err := vg.validateOverlap(before); err != nil {
				return err
			}
		}
		if err := vg.validateOverlap(vg.placed.Get(a.key())); err != nil {
			return err
		}
	}
	return nil
}

// refersTo reports whether a segment of lv names one of some LVs.
func (lv *LV) refersTo(names map[string]bool) bool {
	for i := range lv.Segments {
		s := &lv.Segments[i]
		if s.Snapshot != nil && (names[s.Snapshot.Origin] || names[s.Snapshot.COWStore]) {
			return true
		}
		if slices.ContainsFunc(s.Stripes, func(to Stripe) bool { return to.PV < 0 && names[to.LV] }) {
			return true
		}
	}
	return false
}

// validateHead checks all but the logical volumes.
func (vg *VG) validateHead() error {
	if err := CheckVGName(vg.Name); err != nil {
		return err
	}
	if _, err := ParseID(string(vg.ID)); err != nil {
		return err
	}
	if vg.Seqno > maxSeqno {
		return fmt.Errorf("seqno %d exceeds LVM2's 32 bits: %w", vg.Seqno, ErrInvalid)
	}
	for _, tag := range vg.Tags {
		if err := checkTagText(tag); err != nil {
			return err
		}
	}
	return vg.validatePVs()
}

func (vg *VG) validatePVs() error {
	ids, keys := map[ID]bool{}, map[string]bool{}
	if vg.MaxPV > 0 && uint64(len(vg.PVs)) > vg.MaxPV {
		return fmt.Errorf("%d physical volumes are more than max_pv %d: %w", len(vg.PVs), vg.MaxPV, ErrInvalid)
	}
	for _, pv := range vg.PVs {
		if ids[pv.ID] || keys[pv.key] {
			return fmt.Errorf("physical volume %s (%v) is listed twice: %w", pv.key, pv.ID, ErrInvalid)
		}
		ids[pv.ID], keys[pv.key] = true, true
	}
	return nil
}

func (vg *VG) validateUnique() error {
	if vg.byName.Len() != len(vg.LVs) || vg.byID.Len() != len(vg.LVs) {
		return fmt.Errorf("two logical volumes have the same name or id: %w", ErrInvalid)
	}
	return nil
}

func (vg *VG) validateLVs() error {
	if err := vg.validateUnique(); err != nil {
		return err
	}
	visible := uint64(0)
	for _, lv := range vg.LVs {
		// max_lv counts a snapshot's visible link, not its hidden store.
		if slices.Contains(lv.Status, StatusVisible) {
			visible++
		}
		if err := vg.validateLV(lv); err != nil {
			return err
		}
	}
	if vg.MaxLV > 0 && visible > vg.MaxLV {
		return fmt.Errorf("%d logical volumes are more than max_lv %d: %w", visible, vg.MaxLV, ErrInvalid)
	}
	return nil
}

func (vg *VG) validateLV(lv *LV) error {
	if err := checkName("logical volume", lv.Name); err != nil {
		return err
	}
	if err := vg.validateSegments(lv); err != nil {
		return fmt.Errorf("logical volume %s: %w", lv.Name, err)
	}
	return nil
}

func (vg *VG) validateSegments(lv *LV) error {
	next := Extents(0)
	for i := range lv.Segments {
		s := &lv.Segments[i]
		if s.Count == 0 || s.Start != next {
			return fmt.Errorf("segment %d is empty or does not begin at extent %d, where the previous segment ends: %w", i+1, next, ErrInvalid)
		}
		next += s.Count
		if n := Extents(len(s.Stripes)); n > 0 && s.Count%n != 0 {
			return fmt.Errorf("segment %d: %d extents do not divide into %d stripes: %w", i+1, s.Count, n, ErrInvalid)
		}
		if len(s.Stripes) > 1 && s.StripeSize == 0 {
			return fmt.Errorf("segment %d has several stripes but no stripe size: %w", i+1, ErrInvalid)
		}
		if err := vg.validateReferences(lv, s); err != nil {
			return err
		}
	}
	return nil
}

func (vg *VG) validateReferences(lv *LV, s *Segment) error {
	for _, stripe := range s.Stripes {
		if stripe.PV < 0 {
			if target := vg.byName.Get(stripe.LV); target == nil || target == lv {
				return fmt.Errorf("it is mapped to %q, which does not exist: %w", stripe.LV, ErrInvalid)
			}
			continue
		}
		pv := vg.PVs[stripe.PV]
		if end := stripe.Start + s.Count/Extents(len(s.Stripes)); end > pv.PECount {
			return fmt.Errorf("it ends at extent %d of %s, which has %d: %w", end, pv.key, pv.PECount, ErrInvalid)
		}
	}
	if s.Snapshot == nil {
		return nil
	}
	if !vg.byName.Has(s.Snapshot.Origin) {
		return fmt.Errorf("its origin %q does not exist: %w", s.Snapshot.Origin, ErrInvalid)
	}
	if !vg.byName.Has(s.Snapshot.COWStore) {
		return fmt.Errorf("its store %q does not exist: %w", s.Snapshot.COWStore, ErrInvalid)
	}
	if c := s.Snapshot.ChunkSize; c == 0 || c&(c-1) != 0 {
		return fmt.Errorf("its chunk size of %d sectors is not a power of two: %w", c, ErrInvalid)
	}
	return nil
}

// validateOverlap checks that the areas some, which begin at the same extent, overlap
// neither each other nor the next areas. It checks only striped segments: the areas of
// others are guesses.
func (vg *VG) validateOverlap(some []use) error {
	a, also := some[0], some[1:]
	if _, next, found := vg.placed.After(a.area.key()); found && len(also) == 0 {
		also = next
	}
	if len(also) > 0 && a.area.pv == also[0].area.pv && a.area.start+a.area.count > also[0].area.start {
		return fmt.Errorf("extent %d of %s is used by logical volumes %s and %s: %w",
			also[0].area.start, vg.PVs[a.area.pv].key, a.lv.Name, also[0].lv.Name, ErrInvalid)
	}
	return nil
}

// newKey returns an unused name for a new physical volume.
func (vg *VG) newKey() string {
	taken := map[string]bool{}
	for _, pv := range vg.PVs {
		taken[pv.key] = true
	}
	for n := 0; ; n++ {
		// The name of a physical volume would hide a logical volume with the same
		// name.
		if key := "pv" + strconv.Itoa(n); !taken[key] && !vg.byName.Has(key) {
			return key
		}
	}
}
