package lvm2

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
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
	return replaceFile(h.DevicesFile, next)
}

// appendDevices adds a line for each physical volume, or enters its id in the
// line that the device has. It counts the version up, by which lvm2's commands
// notice that the file changed under them.
func appendDevices(text string, pvs map[string]ID) (string, error) {
	byName := map[string]ID{}
	for path, id := range pvs {
		name, err := filepath.EvalSymlinks(path)
		if err != nil {
			return "", err
		}
		byName[name] = id
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
		fields := strings.Fields(line)
		for name, id := range byName {
			if slices.Contains(fields, "DEVNAME="+name) {
				fields = slices.DeleteFunc(fields, func(f string) bool { return strings.HasPrefix(f, "PVID=") })
				line = strings.Join(append(fields, "PVID="+string(id)), " ")
				delete(byName, name)
			}
		}
		b.WriteString(line + "\n")
	}
	if !version {
		b.WriteString("VERSION=1.1.1\n")
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		// lvm2 looks for the PVID elsewhere when a device of this type is renamed.
		fmt.Fprintf(&b, "IDTYPE=devname IDNAME=%s DEVNAME=%s PVID=%s\n", name, name, string(byName[name]))
	}
	return b.String(), nil
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
