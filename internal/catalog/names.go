package catalog

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

const (
	MaxLVName   = 59 // so that a CSI id with node and pool fits 128 bytes
	MaxCSIName  = 128
	trashPrefix = "dmsnap-trash-"
)

// CheckName returns ErrInvalid for a string that cannot be a CSI name.
func CheckName(csi string) error {
	if csi == "" || len(csi) > MaxCSIName {
		return fmt.Errorf("%w: a name must have 1 to %d bytes, but this one has %d", ErrInvalid, MaxCSIName, len(csi))
	}
	return nil
}

// longestLayer is the longest suffix of the name of a volume's device. spare is the longest
// number at the end of a name.
const (
	longestLayer = "recovered"
	spare        = "-99"
)

// CheckGroupName returns an error for a volume group with a name so long that no volume could
// ever be deleted: the name of a piece of trash would not fit into a device's name.
func CheckGroupName(group string) error {
	if err := lvm2.CheckVGName(group); err != nil {
		return err
	}
	if err := lvm2.CheckLVName(group, TrashName(lvm2.NewID())); err != nil {
		room := lvm2.MaxDMName - len(lvm2.DMName("", TrashName(lvm2.NewID()), "real"))
		return fmt.Errorf("the name of volume group %s takes %d bytes of each device's name, where each hyphen counts twice, but only %d are possible; rename it with vgrename",
			group, len(lvm2.DMName(group, "", ""))-1, room)
	}
	return nil
}

// FitsDevices reports whether the names of all devices of a logical volume lv fit.
func FitsDevices(group, lv string) bool {
	return len(lvm2.DMName(group, lv, longestLayer)) <= lvm2.MaxDMName
}

// LVName chooses the name of a new logical volume for a CSI name. It takes the CSI name if
// LVM2 allows it, or else its readable beginning with a hash. If the name is taken, or a volume
// still has it as its source or its former name, LVName appends a number.
func (v *View) LVName(csi string) (string, error) {
	name := csi
	if rest, reserved := strings.CutPrefix(name, "snapshot"); reserved {
		name = "snap" + rest // LVM2 keeps names that begin with "snapshot" for itself
	}
	if len(name) > MaxLVName-4 || strings.HasPrefix(name, trashPrefix) || lvm2.CheckLVName(v.VG.Name, name) != nil || !FitsDevices(v.VG.Name, name+spare) {
		for letters := HashLetters; letters >= 0; letters-- {
			if name = Hashed(csi, letters); FitsDevices(v.VG.Name, name+spare) {
				break
			}
		}
	}
	if err := lvm2.CheckLVName(v.VG.Name, name); err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	base := name
	for n := 2; v.VG.LV(name) != nil || v.sources.Has(name); n++ {
		name = fmt.Sprintf("%s-%d", base, n)
	}
	return name, nil
}

// HashLetters is the number of readable characters in a hashed name, if there is room.
const HashLetters = 24

// Hashed returns a name made of the first letters and digits of csi, and a hash of csi.
func Hashed(csi string, letters int) string {
	var b strings.Builder
	for i := 0; i < len(csi) && b.Len() < letters; i++ {
		if c := csi[i]; 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' {
			b.WriteByte(c)
		}
	}
	sum := sha256.Sum256([]byte(csi))
	return "dmsnap-" + b.String() + "-" + hex.EncodeToString(sum[:8])
}

// hiddenName returns a free name for the hidden logical volume that joins a snapshot's store
// to its origin. LVM2 numbers these names. The search begins at the last name, as it is if there
// are no gaps, because this edit may have removed it.
func (v *View) hiddenName() string {
	for n := max(v.links.Len()/2, 1) - 1; ; n++ {
		if name := fmt.Sprintf("snapshot%d", n); v.VG.LV(name) == nil {
			return name
		}
	}
}
