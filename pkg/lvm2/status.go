package lvm2

import (
	"fmt"
	"slices"
	"strings"
)

// Status words and flags that this package or its users deal with.
const (
	StatusRead         = "READ"
	StatusWrite        = "WRITE"
	StatusVisible      = "VISIBLE"
	StatusLocked       = "LOCKED" // lvm2 resizes, renames, moves, converts and removes no such logical volume
	FlagActivationSkip = "ACTIVATION_SKIP"
	FlagNoAutoActivate = "NOAUTOACTIVATE"
	statusResizeable   = "RESIZEABLE"
	statusExported     = "EXPORTED"
	statusClustered    = "CLUSTERED"
	statusShared       = "SHARED"
	statusAllocatable  = "ALLOCATABLE"
	statusMissing      = "MISSING"
	statusPVMove       = "PVMOVE"
	flagWriteLocked    = "WRITE_LOCKED"
	lockTypeNone       = "none"
)

// The status words of LVM2 (lib/format_text/flags.c). lvm2 cannot read a volume
// group with any other, so meeting one means that the text is not understood.
var (
	vgStatusWords = []string{statusExported, statusResizeable, statusPVMove, StatusRead, StatusWrite, statusClustered, statusShared}
	pvStatusWords = []string{statusAllocatable, statusExported, statusMissing}
	lvStatusWords = []string{StatusRead, StatusWrite, "FIXED_MINOR", StatusVisible, statusPVMove, StatusLocked, "NOTSYNCED", "REBUILD", "WRITEMOSTLY"}
)

func checkStatus(of string, words, known []string) error {
	for _, w := range words {
		if !slices.Contains(known, w) {
			return fmt.Errorf("status %q of %s: %w", w, of, ErrUnknownStatus)
		}
	}
	return nil
}

// checkUsable refuses a volume group that is not this host's to use.
func (vg *VG) checkUsable(h Host) error {
	switch {
	case slices.Contains(vg.Status, statusExported):
		return fmt.Errorf("%w: vgimport %s makes it usable here", ErrExported, vg.Name)
	case slices.Contains(vg.Status, statusClustered), slices.Contains(vg.Status, statusShared):
		return fmt.Errorf("%w, status %s: vgchange --lock-type none %s makes it local", ErrShared, strings.Join(vg.Status, ","), vg.Name)
	case vg.LockType != "" && vg.LockType != lockTypeNone:
		return fmt.Errorf("%w, lock type %q: vgchange --lock-type none %s makes it local", ErrShared, vg.LockType, vg.Name)
	case vg.SystemID != "" && vg.SystemID != h.SystemID:
		return fmt.Errorf("%w: %q, here it is %q: vgchange --systemid on its owner gives it to this host", ErrForeignSystemID, vg.SystemID, h.SystemID)
	}
	return nil
}

// checkWritable refuses a commit that lvm2 would refuse.
func (vg *VG) checkWritable(h Host) error {
	if err := vg.checkUsable(h); err != nil {
		return err
	}
	if !slices.Contains(vg.Status, StatusWrite) && !slices.Contains(vg.Flags, flagWriteLocked) {
		return fmt.Errorf("%w: add WRITE to the status in a vgcfgbackup of it and restore that", ErrReadOnly)
	}
	for _, pv := range vg.PVs {
		switch {
		case pv.Device == "":
			return pv.notFound()
		case pv.Missing():
			return fmt.Errorf("%v on %s is marked so: %w: vgextend --restoremissing %s %s takes it back", pv.ID, pv.Device, ErrMissingPV, vg.Name, pv.Device)
		}
	}
	return nil
}

func (pv *PV) notFound() error {
	if pv.part != nil {
		return fmt.Errorf("no whole device has %v, which was %s: %w: %w: bring it back", pv.ID, pv.hint, ErrMissingPV, pv.part)
	}
	return fmt.Errorf("no device has %v, which was %s: %w: attach it, or run vgreduce --removemissing", pv.ID, pv.hint, ErrMissingPV)
}
