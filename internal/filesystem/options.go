package filesystem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// ErrNotInEffect: the mount does not have a requested option.
var ErrNotInEffect = errors.New("a mount option is not in effect")

// SplitOptions splits lists of mount options at commas, like mount(8). A comma
// between quotation marks belongs to a value. Empty options are dropped.
func SplitOptions(lists ...string) []string {
	var out []string
	for _, list := range lists {
		start, quoted := 0, false
		for i := range len(list) + 1 {
			switch {
			case i < len(list) && list[i] == '"':
				quoted = !quoted
			case i == len(list) || list[i] == ',' && !quoted:
				if o := strings.TrimSpace(list[start:i]); o != "" {
					out = append(out, o)
				}
				start = i + 1
			}
		}
	}
	return out
}

// value returns the name of an option, and its value as the kernel gets it,
// without quotation marks.
func value(option string) (name, val string) {
	name, val, _ = strings.Cut(option, "=")
	return name, strings.Trim(val, `"`)
}

// needsJournal reports whether a file system refuses an option when its journal is
// not loaded.
func needsJournal(fsType, option string) bool {
	name, _ := value(option)
	return fsType == Ext4 && (slices.Contains([]string{"data", "data_err", "commit"}, name) || strings.HasPrefix(name, "journal_"))
}

// xfsQuotas are the quotas of xfs: the flags of the superblock for a quota that is
// kept and for one that is enforced, and the mount options for both.
var xfsQuotas = []struct {
	kept, enforced   uint16
	option, noLimits string   // for an enforced quota, and for one that is only kept
	others           []string // other spellings of the options
}{
	{0x001, 0x002, "uquota", "uqnoenforce", []string{"quota", "usrquota", "qnoenforce"}},
	{0x040, 0x080, "gquota", "gqnoenforce", []string{"grpquota"}},
	{0x008, 0x200, "pquota", "pqnoenforce", []string{"prjquota"}},
}

const xfsQuotaFlags = 176 // 16 bits of the superblock

// withQuotas replaces the quota options by those that the xfs has. The kernel
// lets no mount change the quotas of a device that it cannot write.
func (d Device) withQuotas(options []string) ([]string, error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sb := make([]byte, superLen)
	if _, err := f.ReadAt(sb, 0); err != nil {
		return nil, err
	}
	flags := binary.BigEndian.Uint16(sb[xfsQuotaFlags:])
	for _, q := range xfsQuotas {
		options = slices.DeleteFunc(options, func(o string) bool {
			return o == q.option || o == q.noLimits || o == "noquota" || slices.Contains(q.others, o)
		})
		switch {
		case flags&q.kept != 0 && flags&q.enforced != 0:
			options = append(options, q.option)
		case flags&q.kept != 0:
			options = append(options, q.noLimits)
		}
	}
	return options, nil
}

// seLinuxOptions are the options that mount(8) silently drops if it does not see
// SELinux.
var seLinuxOptions = []string{"context", "fscontext", "defcontext", "rootcontext"}

// InEffect checks that a mount has the requested options, in any order. It checks
// the options that the kernel shows: the restrictions of the mount point and the
// labels of SELinux. Errors: ErrNotInEffect.
func InEffect(m *mountinfo.Info, options []string) error {
	mountOptions, fsOptions := strings.Split(m.Options, ","), map[string]string{}
	for _, o := range SplitOptions(m.VFSOptions) {
		name, val := value(o)
		fsOptions[name] = val
	}
	for _, o := range options {
		name, want := value(o)
		got, given := fsOptions[name]
		switch {
		case slices.Contains([]string{"nosuid", "nodev", "noexec", "noatime", "nodiratime"}, o):
			if !slices.Contains(mountOptions, o) && !slices.ContainsFunc(options, func(other string) bool { return overrides(other, o) }) {
				return fmt.Errorf("%w: %s at %s, which has %s", ErrNotInEffect, o, m.Mountpoint, m.Options)
			}
		case !slices.Contains(seLinuxOptions, name):
		case !given:
			return fmt.Errorf("%w: %s at %s; mount drops it if SELinux is off or if the host's /sys/fs/selinux and /etc/selinux are not visible: see the chart's seLinuxMount",
				ErrNotInEffect, o, m.Mountpoint)
		case !sameLabel(got, want):
			return fmt.Errorf("%w: %s at %s, which has %s", ErrNotInEffect, o, m.Mountpoint, got)
		}
	}
	return nil
}

// overrides reports whether the option other cancels o, which begins with "no".
func overrides(other, o string) bool {
	return other == o[2:] || other == "defaults" || o == "noatime" && (other == "relatime" || other == "strictatime")
}

// sameLabel reports whether two labels of SELinux are equal. The kernel sorts the
// categories, and writes three or more consecutive ones as a range.
func sameLabel(a, b string) bool {
	x, y := strings.SplitN(a, ":", 4), strings.SplitN(b, ":", 4)
	if len(x) < 4 || len(y) < 4 {
		return a == b
	}
	return slices.Equal(x[:3], y[:3]) && slices.EqualFunc(levels(x[3]), levels(y[3]), maps.Equal)
}

// levels returns the lower and the upper level of an SELinux range. Each level is
// the set of its sensitivity and its categories.
func levels(text string) []map[string]bool {
	low, high, ranged := strings.Cut(text, "-")
	if !ranged {
		high = low
	}
	var out []map[string]bool
	for _, level := range []string{low, high} {
		sensitivity, categories, _ := strings.Cut(level, ":")
		set := map[string]bool{sensitivity: true}
		for c := range strings.SplitSeq(categories, ",") {
			first, last, _ := strings.Cut(c, ".")
			from, err1 := strconv.Atoi(strings.TrimPrefix(first, "c"))
			to, err2 := strconv.Atoi(strings.TrimPrefix(last, "c"))
			if err1 != nil || err2 != nil || from < 0 || to < from || to > 1<<16 { // not a range
				set[c] = true
				continue
			}
			for ; from <= to; from++ {
				set["c"+strconv.Itoa(from)] = true
			}
		}
		out = append(out, set)
	}
	return out
}
