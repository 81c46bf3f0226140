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

// devicesLockPrefix begins the name of the lock file of lvm2's devices file.
const devicesLockPrefix = "D_"

// addDevices lists new physical volumes in lvm2's devices file, if it has one:
// its tools would not look at them otherwise.
func (h Host) addDevices(ctx context.Context, pvs map[string]ID) error {
	if h.DevicesFile == "" {
		return nil
	}
	lock, err := acquire(ctx, filepath.Join(h.lockDir(), devicesLockPrefix+filepath.Base(h.DevicesFile)), Exclusive)
	if err != nil {
		return err
	}
	// lvm2 never removes this lock file and does not expect others to.
	defer unix.Close(lock.fd)
	text, err := os.ReadFile(h.DevicesFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // then lvm2 uses all devices
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
		return nil // the machine's owner keeps it as it is; Entered tells what is missing
	}
	return err
}

// appendDevices enters physical volumes as lvmdevices does: what the file says of
// their devices is replaced. It counts the version up, by which lvm2's commands
// notice that the file changed under them; the hash of the former text tells them
// to make a backup of this one.
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
				return "", fmt.Errorf("%q is not a version known here: add the devices with lvmdevices: %w", line, ErrInvalid)
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

// parseEntry reads a line of the devices file.
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

// replaceFile puts text in the place of a file at one instant, as lvm2 does.
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

// SystemDir is where lvm2's configuration is: LVM_SYSTEM_DIR, which lvm2's own
// commands know too, or /etc/lvm.
func SystemDir() string {
	if dir := os.Getenv("LVM_SYSTEM_DIR"); dir != "" {
		return dir
	}
	return "/etc/lvm"
}

// Settings of lvm2's configuration that say which devices file it goes by.
var (
	useDevicesFile  = regexp.MustCompile(`(?m)^\s*(?:devices/)?use_devicesfile\s*=\s*(\d+)`)
	devicesFileName = regexp.MustCompile(`(?m)^\s*(?:devices/)?devicesfile\s*=\s*"([^"/]+)"`)
)

// DevicesFile returns the path of the devices file by which lvm2's commands go
// whose configuration is in dir, empty if they go by none. lvm2 uses all devices
// as long as there is no such file.
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

// Listed reports whether lvm2's commands would take a device for the physical
// volume that its label says it is: it is in the devices file, or there is no
// such file.
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

// Enter lists a physical volume in lvm2's devices file unless lvm2 finds it there.
func (h Host) Enter(ctx context.Context, device string, pv ID) error {
	if in, err := h.Entered(device, pv); in || err != nil {
		return err
	}
	return h.addDevices(ctx, map[string]ID{device: pv})
}

// Entered reports whether lvm2's commands find the device of a physical volume by
// the devices file, or by there being none.
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
			return true, nil // lvm2 corrects which physical volume that is
		}
		// Of one by a name lvm2 believes the physical volume, and looks for it under other
		// names too, among the devices without another id.
		unknown := its == "" || its == "."
		if e.kind == idName && (d.is(e) && unknown || (d.is(e) || byName) && its == pv) {
			return true, nil
		}
	}
	return false, nil
}
