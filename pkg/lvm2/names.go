package lvm2

import (
	"fmt"
	"strings"
)

// LVM2's limits on names, in bytes.
const (
	maxName = 127
	maxTag  = 1024
)

// MaxDMName is the maximum length of the name of a device-mapper device, in bytes:
// DM_NAME_LEN without the NUL.
const MaxDMName = 127

// longestLayer is the longest suffix of lvm2's devices of an origin or snapshot.
const longestLayer = "real"

// reservedParts must not occur in the name of a logical volume: lvm2 uses them in
// the names of hidden volumes.
var reservedParts = []string{
	"_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_wcorig", "_mimage", "_mlog", "_rimage", "_rmeta",
	"_tdata", "_tmeta", "_vdata", "_imeta", "_iorig", "_pmspare", "_vorigin",
}

// CheckVGName returns an error if name cannot be the name of a volume group.
//
// Errors: ErrInvalid.
func CheckVGName(name string) error { return checkName("volume group", name) }

// CheckLVName returns an error if a logical volume named lv cannot be created in the
// volume group vg. It checks LVM2's characters and reserved names, and the length of
// the device-mapper name with doubled hyphens and the suffix -real.
//
// Errors: ErrInvalid.
func CheckLVName(vg, lv string) error {
	if err := checkName("logical volume", lv); err != nil {
		return err
	}
	for _, prefix := range []string{"snapshot", "pvmove"} {
		if strings.HasPrefix(lv, prefix) {
			return fmt.Errorf("logical volume name %q begins with the reserved word %q: %w", lv, prefix, ErrInvalid)
		}
	}
	for _, part := range reservedParts {
		if strings.Contains(lv, part) {
			return fmt.Errorf("logical volume name %q contains the reserved word %q: %w", lv, part, ErrInvalid)
		}
	}
	if len(vg)+len(lv)+3 > maxName {
		return fmt.Errorf("logical volume name %q and volume group name %q are together longer than %d bytes: %w", lv, vg, maxName-3, ErrInvalid)
	}
	if n := len(DMName(vg, lv, longestLayer)); n > MaxDMName {
		return fmt.Errorf("logical volume name %q needs a device name of %d bytes (hyphens count twice), at most %d are allowed: %w", lv, n, MaxDMName, ErrInvalid)
	}
	return nil
}

func checkName(what, name string) error {
	if name == "" || name == "." || name == ".." || name[0] == '-' {
		return fmt.Errorf("%s name %q is empty, a dot, or begins with a hyphen: %w", what, name, ErrInvalid)
	}
	if len(name) > maxName {
		return fmt.Errorf("%s name %.20q… has %d bytes, at most %d are allowed: %w", what, name, len(name), maxName, ErrInvalid)
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; !isAlnum(c) && strings.IndexByte("._+-", c) < 0 {
			return fmt.Errorf("%s name %q has the character %q, only letters, digits and ._+- are allowed: %w", what, name, c, ErrInvalid)
		}
	}
	return nil
}

// CheckTag returns an error if tag cannot be a tag of a volume group or logical
// volume.
//
// Errors: ErrInvalid.
func CheckTag(tag string) error {
	if len(tag) > maxTag {
		return fmt.Errorf("tag %.20q… has %d bytes, at most %d are allowed: %w", tag, len(tag), maxTag, ErrInvalid)
	}
	return checkTagText(tag)
}

// checkTagText is CheckTag without the limit on the length: lvm2's commands accept
// longer tags.
func checkTagText(tag string) error {
	if tag == "" {
		return fmt.Errorf("a tag is empty: %w", ErrInvalid)
	}
	for i := 0; i < len(tag); i++ {
		if c := tag[i]; !isAlnum(c) && strings.IndexByte("_+.-/=!:&#", c) < 0 {
			return fmt.Errorf("tag %q has the character %q, only letters, digits and _+.-/=!:&# are allowed: %w", tag, c, ErrInvalid)
		}
	}
	return nil
}

// DMName returns the device-mapper name of a logical volume's device, with doubled
// hyphens in both names. layer is the suffix of a hidden device, such as "real" or
// "cow", or empty.
func DMName(vg, lv, layer string) string {
	name := strings.ReplaceAll(vg, "-", "--") + "-" + strings.ReplaceAll(lv, "-", "--")
	if layer != "" {
		name += "-" + layer
	}
	return name
}

// groupOfDM returns the name of the volume group in a device-mapper name.
func groupOfDM(name string) string {
	const hyphen = "\x00"
	group, _, _ := strings.Cut(strings.ReplaceAll(name, "--", hyphen), "-")
	return strings.ReplaceAll(group, hyphen, "-")
}

// dmPrefix is the prefix of the device-mapper UUIDs of LVM2's devices.
const dmPrefix = "LVM-"

// DMUUID returns the device-mapper UUID of a logical volume's device. For layer see
// DMName.
func DMUUID(vg, lv ID, layer string) string {
	uuid := dmPrefix + string(vg) + string(lv)
	if layer != "" {
		uuid += "-" + layer
	}
	return uuid
}
