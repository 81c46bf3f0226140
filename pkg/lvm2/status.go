package lvm2

import (
	"fmt"
	"slices"
	"strings"
)

// Status words and flags of volume groups, physical volumes and logical volumes.
const (
	StatusRead         = "READ"
	StatusWrite        = "WRITE"
	StatusVisible      = "VISIBLE"
	StatusLocked       = "LOCKED" // lvm2 does not resize, rename, move, convert or remove the logical volume
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

// The status words of LVM2 (lib/format_text/flags.c). lvm2 cannot read a volume group
// with an unknown word, so this package does not read it either.
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

// checkUsable returns an error if this host must not use the volume group.
func (vg *VG) checkUsable(h Host) error {
	switch {
	case slices.Contains(vg.Status, statusExported):
		return fmt.Errorf("%w; import it with vgimport %s", ErrExported, vg.Name)
	case slices.Contains(vg.Status, statusClustered), slices.Contains(vg.Status, statusShared):
		return fmt.Errorf("%w (status %s); make it local with vgchange --lock-type none %s", ErrShared, strings.Join(vg.Status, ","), vg.Name)
	case vg.LockType != "" && vg.LockType != lockTypeNone:
		return fmt.Errorf("%w (lock type %q); make it local with vgchange --lock-type none %s", ErrShared, vg.LockType, vg.Name)
	case vg.SystemID != "" && vg.SystemID != h.SystemID:
		return fmt.Errorf("%w: %q, and this host has %q; transfer it with vgchange --systemid on its owner", ErrForeignSystemID, vg.SystemID, h.SystemID)
	}
	return nil
}

// checkWritable returns an error if lvm2 would refuse a commit.
func (vg *VG) checkWritable(h Host) error {
	if err := vg.checkUsable(h); err != nil {
		return err
	}
	if !slices.Contains(vg.Status, StatusWrite) && !slices.Contains(vg.Flags, flagWriteLocked) {
		return fmt.Errorf("%w; to make it writable, add WRITE to its status in a vgcfgbackup and restore the backup", ErrReadOnly)
	}
	for _, pv := range vg.PVs {
		switch {
		case pv.Device == "":
			return pv.notFound()
		case pv.Missing():
			return fmt.Errorf("%v on %s is marked as missing: %w; restore it with vgextend --restoremissing %s %s", pv.ID, pv.Device, ErrMissingPV, vg.Name, pv.Device)
		}
	}
	return nil
}

func (pv *PV) notFound() error {
	if pv.part != nil {
		return fmt.Errorf("no whole device has %v, which was %s: %w: %w; bring it back", pv.ID, pv.hint, ErrMissingPV, pv.part)
	}
	return fmt.Errorf("no device has %v, which was %s: %w; attach it, or run vgreduce --removemissing", pv.ID, pv.hint, ErrMissingPV)
}
