package pool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// LeftOut is a device that matches the configuration, but is not in the pool's
// volume group.
type LeftOut struct {
	Device  string `json:"device"`
	Why     string `json:"why"`
	refused bool   // report it to people: the configuration names it, or its logical blocks have another size
	hinders bool   // no group is created without it
}

func (l LeftOut) text() string { return "device " + l.Device + ": " + l.Why }

// match is a device that the configuration names, or that matches one of its
// patterns.
type match struct {
	path  string    // its first name
	dev   dm.Device // zero if why says that it is not a block device
	named bool      // by its path, not by a pattern
	why   error     // why it cannot be a disk of a pool at all

	unclear bool // its content cannot be determined
}

// matches returns the devices that match the configuration, named devices first.
// Each device occurs once, even if several links lead to it.
func (c Config) matches() ([]match, error) {
	named, matched := []string(nil), []string(nil)
	for _, pattern := range c.Devices {
		found, err := filepath.Glob(pattern)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%w: device pattern %q: %w", ErrInvalid, pattern, err)
		case !strings.ContainsAny(pattern, `*?[\`):
			named = append(named, pattern)
		default:
			matched = append(matched, found...)
		}
	}
	if c.File != "" {
		loop, err := loopOf(c.File)
		if err != nil {
			return nil, err
		}
		if loop != "" {
			named = append(named, loop)
		}
	}
	slices.Sort(named)
	slices.Sort(matched)
	var out []match
	for i, path := range slices.Concat(named, matched) {
		m := match{path: path, named: i < len(named)}
		m.dev, m.why = blockDevice(path)
		known := func(o match) bool { return o.path == path || m.why == nil && o.dev == m.dev }
		if slices.ContainsFunc(out, known) {
			continue
		}
		if m.why == nil && c.onPool(path) {
			m.why = errors.New("it lies on a logical volume of a pool")
		}
		out = append(out, m)
	}
	return out, nil
}

// blockDevice returns the number of the block device at a path.
func blockDevice(path string) (dm.Device, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return dm.Device{}, err
	case info.IsDir():
		return dm.Device{}, errors.New("it is a directory")
	case info.Mode()&os.ModeCharDevice != 0:
		return dm.Device{}, errors.New("it is a character device")
	case info.Mode()&os.ModeDevice == 0:
		return dm.Device{}, errors.New("it is not a block device")
	}
	return dm.DeviceOf(path)
}

// devices returns the block devices that match the configuration.
func (c Config) devices() ([]string, error) {
	all, err := c.matches()
	var paths []string
	for _, m := range all {
		if m.why == nil {
			paths = append(paths, m.path)
		}
	}
	return paths, err
}

// choose returns the matching devices from which a volume group can be created or,
// if vg is not nil, by which vg can be extended. It also returns the other devices
// with the reasons, except those that vg already has.
func (c Config) choose(vg *lvm2.VG) (devices []string, left []LeftOut, err error) {
	all, err := c.matches()
	if err != nil {
		return nil, nil, err
	}
	ours := map[dm.Device]bool{}
	if vg != nil {
		for _, pv := range vg.PVs {
			if pv.Device == "" {
				continue
			}
			ours[diskOf(pv)] = true
			for _, dev := range pathsBelow(pv) {
				ours[dev] = true
			}
		}
	}
	looked := map[string]match{}
	var paths []string
	for _, m := range all {
		if m.why == nil && ours[m.dev] {
			continue
		}
		if m.why == nil {
			m.why = unreadable(m.path)
			m.unclear = m.why != nil
		}
		if m.why != nil {
			here := !doesNotExist(m.why)
			left = append(left, LeftOut{m.path, m.why.Error(), m.named && here, m.named && here || m.unclear})
			continue
		}
		looked[m.path] = m
		paths = append(paths, m.path)
	}
	fit, unfit := lvm2.Fit(paths, vg, c.ExtentSize)
	twins := lvm2.Twins(fit)
	for _, path := range fit {
		why := looked[path].unnamed(all)
		if twin := twins[path]; twin != "" && !looked[path].named && why == nil {
			why = fmt.Errorf("%s has the same WWID, so both may be paths to one disk; set up multipath, name one of them, or name both if they are two disks", realPath(twin))
		}
		if why != nil {
			left = append(left, LeftOut{Device: path, Why: why.Error()})
		} else {
			devices = append(devices, path)
		}
	}
	for _, u := range unfit {
		m := looked[u.Device]
		if errors.Is(u.Err, lvm2.ErrBlockSize) {
			left = append(left, otherKind(u.Device, u.Err))
			continue
		}
		ownUser := vg == nil && slices.Contains(lvm2.GroupsOn(u.Device), c.VolumeGroup)
		left = append(left, LeftOut{u.Device, u.Err.Error(), m.named, m.named || !u.Certain() || ownUser})
	}
	slices.SortFunc(left, func(a, b LeftOut) int { return strings.Compare(a.Device, b.Device) })
	return devices, left, nil
}

// doesNotExist reports whether the device does not exist: it may appear later, or be on
// another node.
func doesNotExist(why error) bool { return errors.Is(why, os.ErrNotExist) }

// unreadable returns why a device is not even read; nil if it can be read.
func unreadable(path string) error {
	stack, err := lvm2.Stack(path)
	if err == nil && slices.ContainsFunc(stack, func(l lvm2.Layer) bool { return l.Suspended }) {
		err = errors.New("it is suspended, so reading it would wait")
	}
	return err
}

// unnamed returns why a fit device that only a pattern matches is not used; nil if
// it can be used.
func (m match) unnamed(all []match) error {
	if m.named {
		return nil
	}
	if stack, err := lvm2.Stack(m.path); err != nil {
		return err
	} else if group := stack[0].Group; group != "" {
		return fmt.Errorf("it is a logical volume of %s; to use it, name it by its path", group)
	}
	// Such a partition may belong to the firmware or the boot loader, which leave
	// no signature.
	for _, o := range all {
		if o.why == nil && o.dev == m.disk() {
			return fmt.Errorf("it is a partition of %s, which also matches; to use it, name it by its path", realPath(o.path))
		}
	}
	return nil
}

// disk returns the disk of a partition; zero if m is not a partition.
func (m match) disk() (disk dm.Device) {
	dir, err := filepath.EvalSymlinks("/sys/dev/block/" + m.dev.String())
	if err != nil {
		return dm.Device{}
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err != nil {
		return dm.Device{}
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "dev"))
	if err != nil {
		return dm.Device{}
	}
	if _, err := fmt.Sscanf(string(text), "%d:%d", &disk.Major, &disk.Minor); err != nil {
		return dm.Device{}
	}
	return disk
}

// realPath returns the path with all links resolved.
func realPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// hindrance returns why no group can be created from devices; nil if it can.
func (c Config) hindrance(devices []string, left []LeftOut) error {
	why := func(all []LeftOut) string {
		var lines []string
		for _, l := range all {
			lines = append(lines, l.text())
		}
		return strings.Join(lines, "; ")
	}
	hinders := slices.DeleteFunc(slices.Clone(left), func(l LeftOut) bool { return !l.hinders })
	meant := strings.Join(c.Devices, " ")
	switch {
	case len(hinders) > 0:
		return fmt.Errorf("%w: no volume group is created while a named device is not fit, or while a device may be a damaged disk of the pool: %s", ErrUnavailable, why(hinders))
	case len(devices) == 0 && len(left) > 0:
		return fmt.Errorf("%w: none of the devices that match %s is fit: %s", ErrUnavailable, meant, why(left))
	case len(devices) == 0:
		return fmt.Errorf("%w: no device matches %s", ErrUnavailable, meant)
	}
	return nil
}
