package lvm2

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// devicesLockPrefix is the prefix of the name of the devices file's lock file.
const devicesLockPrefix = "D_"

// addDevices adds new physical volumes to lvm2's devices file, if there is one. The
// lvm2 tools do not use devices that are not in the file.
func (h Host) addDevices(ctx context.Context, pvs map[string]ID) error {
	if h.DevicesFile == "" {
		return nil
	}
	lock, err := acquire(ctx, filepath.Join(h.lockDir(), devicesLockPrefix+filepath.Base(h.DevicesFile)), Exclusive)
	if err != nil {
		return err
	}
	// lvm2 never removes this lock file, and does not expect its removal.
	defer unix.Close(lock.fd)
	text, err := os.ReadFile(h.DevicesFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // without the file lvm2 uses all devices
	}
	if err != nil {
		return fmt.Errorf("read lvm2's devices file: %w", err)
	}
	next, err := appendDevices(string(text), pvs)
	if err != nil {
		return fmt.Errorf("lvm2's devices file %s: %w", h.DevicesFile, err)
	}
	err = replaceFile(h.DevicesFile, next)
	if errors.Is(err, unix.EROFS) {
		return nil // the machine's owner manages the file; Entered reports what is missing
	}
	return err
}

// appendDevices returns the text of the devices file with entries for the physical
// volumes. Like lvmdevices, it replaces existing entries of their devices and
// increments the version, so that running lvm2 commands notice the change. It keeps
// the hash of the old text, so that lvm2 makes a backup of the new text.
func appendDevices(text string, pvs map[string]ID) (string, error) {
	modern := strings.Contains(text, "# HASH=")
	var devices []*idDevice
	var entries []string
	for _, path := range slices.Sorted(maps.Keys(pvs)) {
		d, err := idDeviceOf(path)
		if err != nil {
			return "", err
		}
		devices = append(devices, d)
		entries = append(entries, entryOf(d.preferred(modern), d.node, pvs[path]))
	}
	var b strings.Builder
	version := false
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		var major, minor, counter uint32
		if strings.HasPrefix(line, "VERSION=") {
			if n, _ := fmt.Sscanf(line, "VERSION=%d.%d.%d", &major, &minor, &counter); n != 3 || major > 1 {
				return "", fmt.Errorf("%q is an unknown version: %w; add the devices with lvmdevices", line, ErrInvalid)
			}
			version = true
			line = fmt.Sprintf("VERSION=%d.%d.%d", major, minor, counter+1)
		}
		if e, _ := parseEntry(line); slices.ContainsFunc(devices, func(d *idDevice) bool { return d.is(e) }) {
			continue
		}
		b.WriteString(line + "\n")
	}
	if !version {
		b.WriteString("VERSION=1.1.1\n")
	}
	for _, e := range entries {
		b.WriteString(e + "\n")
	}
	return b.String(), nil
}

func entryOf(id deviceID, node string, pv ID) string {
	line := fmt.Sprintf("IDTYPE=%s IDNAME=%s DEVNAME=%s PVID=%s", id.kind, id.name, node, string(pv))
	if id.part != 0 {
		line += fmt.Sprintf(" PART=%d", id.part)
	}
	return line
}

// parseEntry parses a line of the devices file.
func parseEntry(line string) (id deviceID, pv ID) {
	if strings.HasPrefix(line, "#") {
		return id, ""
	}
	for _, field := range strings.Fields(line) {
		switch key, value, _ := strings.Cut(field, "="); key {
		case "IDTYPE":
			id.kind = value
		case "IDNAME":
			id.name = value
		case "PVID":
			pv = ID(value)
		case "PART":
			id.part, _ = strconv.Atoi(value)
		}
	}
	return id, pv
}

// replaceFile atomically replaces the content of a file, with the temporary name that
// lvm2 uses.
func replaceFile(path, text string) error {
	f, err := os.OpenFile(path+"_new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// SystemDir returns the directory of lvm2's configuration: the environment variable
// LVM_SYSTEM_DIR, as in lvm2's commands, or /etc/lvm.
func SystemDir() string {
	if dir := os.Getenv("LVM_SYSTEM_DIR"); dir != "" {
		return dir
	}
	return "/etc/lvm"
}

// Settings of lvm2's configuration that choose the devices file.
var (
	useDevicesFile  = regexp.MustCompile(`(?m)^\s*(?:devices/)?use_devicesfile\s*=\s*(\d+)`)
	devicesFileName = regexp.MustCompile(`(?m)^\s*(?:devices/)?devicesfile\s*=\s*"([^"/]+)"`)
)

// DevicesFile returns the path of the devices file of lvm2's commands, by the
// configuration in dir. It returns "" if the configuration disables the devices file.
// While the file does not exist, lvm2 uses all devices.
func DevicesFile(dir string) string {
	name, used := "system.devices", true
	for _, config := range []string{"lvm.conf", "lvmlocal.conf"} {
		text, err := os.ReadFile(filepath.Join(dir, config))
		if err != nil {
			continue
		}
		if m := useDevicesFile.FindAllSubmatch(text, -1); m != nil {
			used = string(m[len(m)-1][1]) != "0"
		}
		if m := devicesFileName.FindAllSubmatch(text, -1); m != nil {
			name = string(m[len(m)-1][1])
		}
	}
	if !used {
		return ""
	}
	return filepath.Join(dir, "devices", name)
}

// Listed reports whether lvm2's commands would use the device as the physical volume
// in its label: the devices file lists it, or there is no devices file.
func (h Host) Listed(device string, pv ID) bool {
	if h.DevicesFile == "" {
		return true
	}
	text, err := os.ReadFile(h.DevicesFile)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	name, err := filepath.EvalSymlinks(device)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		known := slices.ContainsFunc(fields, func(f string) bool {
			id, is := strings.CutPrefix(f, "PVID=")
			return is && id != "."
		})
		if slices.Contains(fields, "PVID="+string(pv)) || !known && slices.Contains(fields, "DEVNAME="+name) {
			return true
		}
	}
	return false
}

// Enter adds a physical volume to lvm2's devices file, unless it is already there,
// see Entered.
func (h Host) Enter(ctx context.Context, device string, pv ID) error {
	if in, err := h.Entered(device, pv); in || err != nil {
		return err
	}
	return h.addDevices(ctx, map[string]ID{device: pv})
}

// Entered reports whether lvm2's commands find the device of a physical volume: the
// devices file has an entry for it, or there is no devices file.
func (h Host) Entered(device string, pv ID) (bool, error) {
	if h.DevicesFile == "" {
		return true, nil
	}
	text, err := os.ReadFile(h.DevicesFile)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read lvm2's devices file: %w", err)
	}
	d, err := idDeviceOf(device)
	if err != nil {
		return false, err
	}
	byName := d.preferred(true).kind == idName
	for line := range strings.Lines(string(text)) {
		e, its := parseEntry(line)
		if e.kind != idName && d.is(e) {
			return true, nil // lvm2 corrects the physical volume's id in the entry
		}
		// If an entry has a name and a physical volume's id, lvm2 relies on the id. It
		// looks for that physical volume on all devices that only have names.
		unknown := its == "" || its == "."
		if e.kind == idName && (d.is(e) && unknown || (d.is(e) || byName) && its == pv) {
			return true, nil
		}
	}
	return false, nil
}
