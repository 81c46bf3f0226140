package lvm2

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Unfit is a device that cannot become a physical volume.
type Unfit struct {
	Device string // path
	Err    error  // the reason, without the path
}

// Certain reports whether the device certainly does not belong to the volume group
// that is to be created: it is in use or partitioned, has known content that is not
// LVM2's or is of another volume group, has another logical block size, or is too
// small, write-protected or without a medium. A device that cannot be read, or whose
// metadata is damaged, may belong to it.
func (u Unfit) Certain() bool {
	return !errors.Is(u.Err, ErrDamaged) && slices.ContainsFunc(
		[]error{ErrInUse, ErrPartitioned, ErrWriteProtected, ErrNotBlank, ErrTooSmall, ErrBlockSize, unix.ENOMEDIUM, unix.ENXIO},
		func(certain error) bool { return errors.Is(u.Err, certain) })
}

// Fit returns the devices that can become physical volumes of vg, and the reasons
// why the others cannot. If vg is nil, it checks for a new volume group with the
// given extent size (0: DefaultExtentSize). It does not write, and does not read
// devices that are in use.
func Fit(devices []string, vg *VG, extent size.Bytes) (fit []string, unfit []Unfit) {
	extent, kinds := cmp.Or(extent, DefaultExtentSize), []size.Bytes(nil)
	if vg == nil {
		vg = newVG("", uint64(extent.Sectors()), nil, nil, "")
	} else {
		extent, kinds = vg.ExtentSize.Bytes(), vg.blockSizes()
	}
	f := &freshDisks{}
	defer f.close()
	for _, path := range devices {
		d, err := openFree(path, os.O_RDONLY)
		if err == nil {
			f.devices = append(f.devices, d)
			if _, err = d.dataStart(extent, DefaultMetadataSize, DefaultDataAlignment); err == nil {
				err = d.checkBlocks(kinds)
			}
		}
		if err != nil {
			unfit = append(unfit, Unfit{path, err})
		}
	}
	f.devices = slices.DeleteFunc(f.devices, func(d *device) bool {
		drop := slices.ContainsFunc(unfit, func(u Unfit) bool { return u.Device == d.path })
		if drop {
			d.file.Close()
		}
		return drop
	})
	content := contents(f.devices, vg)
	for _, d := range f.devices {
		if err := content[d]; err != nil {
			unfit = append(unfit, Unfit{d.path, err})
		} else {
			fit = append(fit, d.path)
		}
	}
	return fit, unfit
}

// Twins returns the devices that have the same WWID as another of the devices, each
// with that other device. Without multipath, two paths to a disk look like two
// disks.
func Twins(devices []string) map[string]string {
	seen, twins := map[deviceID]string{}, map[string]string{}
	for _, path := range devices {
		d, err := idDeviceOf(path)
		if err != nil {
			continue
		}
		id := deviceID{idWWID, d.id(idWWID), d.part}
		if id.name == "" {
			continue
		}
		if other, known := seen[id]; known {
			twins[path], twins[other] = other, path
		}
		seen[id] = path
	}
	return twins
}

// openFree opens a device exclusively, if it is not in use and can be written to.
// The exclusive open also finds users that sysfs does not show: mounts, also in other
// mount namespaces, and swap.
func openFree(path string, access int) (*device, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	id, err := identify(info)
	if err != nil {
		return nil, err
	}
	if id.ino == 0 {
		if err := id.checkFree(); err != nil {
			return nil, err
		}
	}
	d, err := openDevice(path, access|os.O_EXCL)
	switch {
	case errors.Is(err, ErrInUse):
		return nil, fmt.Errorf("%w: it is mounted, swap, or claimed by another program", ErrInUse)
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EACCES) && access == os.O_RDWR:
		return nil, fmt.Errorf("%w: %w", ErrWriteProtected, err)
	case err != nil:
		return nil, err
	}
	if f, is := d.file.(*os.File); is && id.ino == 0 {
		if ro, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKROGET); err == nil && ro != 0 {
			f.Close()
			return nil, ErrWriteProtected
		}
	}
	return d, nil
}

// dir returns the directory of a block device in sysfs.
func (i identity) dir() string {
	return fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(i.dev), unix.Minor(i.dev))
}

// checkFree returns an error if a block device has partitions or if another device
// lies on it.
func (i identity) checkFree() error {
	var partitions, users []string
	found, _ := filepath.Glob(filepath.Join(i.dir(), "*", "partition"))
	for _, path := range found {
		partitions = append(partitions, filepath.Base(filepath.Dir(path)))
	}
	if len(partitions) > 0 {
		return fmt.Errorf("%w: %s", ErrPartitioned, strings.Join(partitions, " "))
	}
	found, _ = filepath.Glob(filepath.Join(i.dir(), "holders", "*"))
	for _, path := range found {
		user := filepath.Base(path)
		if name, err := os.ReadFile(filepath.Join(path, "dm", "name")); err == nil {
			user += " (" + strings.TrimSpace(string(name)) + ")"
		}
		users = append(users, user)
	}
	// A loop device is not an exclusive user. The kubelet creates a loop device on
	// each block volume of a pod.
	found, _ = filepath.Glob("/sys/block/loop*/loop")
	for _, path := range found {
		loop := filepath.Base(filepath.Dir(path))
		if on, err := fileOfLoop(filepath.Join("/dev", loop)); err == nil && on == i.dev && on != 0 {
			users = append(users, loop)
		}
	}
	if i.ofMultipath() {
		users = append(users, "a multipath map, according to udev")
	}
	if len(users) > 0 {
		return fmt.Errorf("%w: used by %s", ErrInUse, strings.Join(users, " "))
	}
	return nil
}

// GroupsOn returns the names of the volume groups whose active logical volumes lie
// directly on the block device at path. A name may be listed more than once.
func GroupsOn(path string) (groups []string) {
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	id, err := identify(info)
	if err != nil || id.ino != 0 {
		return nil
	}
	holders, _ := filepath.Glob(filepath.Join(id.dir(), "holders", "*", "dm"))
	for _, dir := range holders {
		uuid, _ := os.ReadFile(filepath.Join(dir, "uuid"))
		name, err := os.ReadFile(filepath.Join(dir, "name"))
		if err == nil && strings.HasPrefix(string(uuid), dmPrefix) {
			groups = append(groups, groupOfDM(strings.TrimSpace(string(name))))
		}
	}
	return groups
}

// contents returns why devices are not blank. The devices must be open exclusively.
// Physical volumes without a volume group that an interruption has left count as
// blank.
func contents(devices []*device, vg *VG) map[*device]error {
	why, found, disks := map[*device]error{}, map[*device]string{}, []*disk(nil)
	for _, d := range devices {
		content, err := d.signature()
		if err != nil || content == "" {
			why[d] = err
			continue
		}
		p, err := inspect(d)
		switch {
		case err != nil:
			why[d] = fmt.Errorf("%w: it has the signature of %s: %w", ErrNotBlank, content, err)
		case p != nil:
			found[d], disks = content, append(disks, p)
		default:
			why[d] = d.notBlank(content)
		}
	}
	for _, p := range disks {
		if !p.unfinished(vg, disks) {
			why[p.device] = p.notBlank(found[p.device])
		}
	}
	return why
}

// notBlank returns the error for a device with the given content, which is not a
// physical volume.
func (d *device) notBlank(content string) error {
	why := fmt.Errorf("%w: it has the signature of %s", ErrNotBlank, content)
	if strings.Contains(content, "partition table") && !d.scanned() {
		return why // the device may have partitions
	}
	return fmt.Errorf("%w; if its content is not needed, wipe it with wipefs -a", why)
}

// scanned reports whether the kernel would show partitions of the device.
func (d *device) scanned() bool {
	text, err := os.ReadFile(filepath.Join(d.id.dir(), "ext_range"))
	return err == nil && strings.TrimSpace(string(text)) != "1"
}

// notBlank returns the error for a physical volume, with its volume group. It
// suggests to wipe p only if p is certainly in no volume group.
func (p *disk) notBlank(content string) error {
	why := fmt.Errorf("%w: it is an %s", ErrNotBlank, content)
	orphan := !p.label.used && len(p.areas) > 0
	for _, a := range p.areas {
		if a.err != nil {
			return fmt.Errorf("%w: %w", why, a.err)
		}
		if a.about.name != "" {
			return fmt.Errorf("%w of volume group %s", why, a.about.name)
		}
		orphan = orphan && a.header.committed == (slot{})
	}
	if !orphan {
		return why
	}
	return fmt.Errorf("%w in no volume group; if it is not needed, wipe it with pvremove", why)
}
