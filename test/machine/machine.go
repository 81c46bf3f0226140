// Package machine makes the test kernel look like a typical machine: udev runs
// and makes links to the disks, the system disk has partitions, and lvm2 uses a
// devices file. Each part returns a function that undoes it.
package machine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotOurs is returned when the machine is not a test kernel, and so must not
// be changed.
var ErrNotOurs = errors.New("this machine is not a test kernel")

// Ours returns ErrNotOurs unless the machine is a test kernel.
func Ours() error {
	_, err := withDevicesFile()
	if _, running := os.Stat("/run/udev/control"); err == nil && running == nil {
		err = fmt.Errorf("udev is running: %w", ErrNotOurs)
	}
	return err
}

// startLimit is how long udevd may take to start.
const startLimit = time.Minute

// links are udev rules. They give each disk of the test kernel, and each
// partition, three names such as NVMe disks have.
const links = `SUBSYSTEM=="block", KERNEL=="ubd[a-z]|vd[a-z]", SYMLINK+="disk/by-id/nvme-Disk_$kernel disk/by-id/nvme-Disk_$kernel_1 disk/by-id/nvme-eui.$kernel"
SUBSYSTEM=="block", KERNEL=="ubd[a-z][0-9]|vd[a-z][0-9]", SYMLINK+="disk/by-id/nvme-Disk_%P-part%n disk/by-id/nvme-Disk_%P_1-part%n disk/by-id/nvme-eui.%P-part%n"
`

func run(args ...string) error {
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Links installs rules by which udev makes links below /dev/disk/by-id. It
// takes effect when udev starts.
func Links() (undo func() error, err error) {
	const rules = "/etc/udev/rules.d/61-test.rules"
	if err := os.MkdirAll(filepath.Dir(rules), 0o755); err != nil {
		return nil, err
	}
	return func() error { return os.Remove(rules) }, os.WriteFile(rules, []byte(links), 0o644)
}

// Udev starts udevd, and waits until udevd has handled the devices that exist
// already.
func Udev() (undo func() error, err error) {
	if _, err := os.Stat("/run/udev/control"); err == nil {
		return nil, fmt.Errorf("udev is running: %w", ErrNotOurs)
	}
	if err := os.MkdirAll("/run/udev", 0o755); err != nil {
		return nil, err
	}
	udevd := exec.Command("/lib/systemd/systemd-udevd")
	udevd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	if err := udevd.Start(); err != nil {
		return nil, err
	}
	undo = func() error {
		errs := []error{udevd.Process.Signal(unix.SIGTERM)}
		_ = udevd.Wait()
		// The directory stays: it may be a mount point in a container.
		for _, name := range []string{"control", "data", "links", "tags", "queue"} {
			errs = append(errs, os.RemoveAll(filepath.Join("/run/udev", name)))
		}
		return errors.Join(errs...)
	}
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat("/run/udev/control"); err == nil {
			break
		}
		if time.Since(begun) > startLimit {
			return nil, errors.Join(errors.New("udevd did not start"), undo())
		}
	}
	// The ping waits until udevd listens for events, which it does after it has made its
	// socket.
	err = errors.Join(run("udevadm", "control", "--ping"), run("udevadm", "trigger", "--action=add", "--subsystem-match=block"), run("udevadm", "settle"))
	if err != nil {
		return nil, errors.Join(err, undo())
	}
	return undo, nil
}

// System makes a system disk. It has a file system that is mounted at root,
// swap that is in use, and a boot loader's partition without a signature. The
// file system is read-only, so that the disk's bytes do not change.
func System(disk, root string) (undo func() error, err error) {
	const mib = 2048 // sectors
	mbr := make([]byte, 512)
	for i, part := range [][2]uint32{{mib, 256 * mib}, {300 * mib, 128 * mib}, {500 * mib, 128 * mib}} {
		entry := mbr[446+16*i:]
		entry[4] = 0x83
		binary.LittleEndian.PutUint32(entry[8:], part[0])
		binary.LittleEndian.PutUint32(entry[12:], part[1])
	}
	mbr[510], mbr[511] = 0x55, 0xaa
	if err := os.WriteFile(disk, mbr, 0); err != nil {
		return nil, err
	}
	for _, step := range [][]string{
		{"blockdev", "--rereadpt", disk}, {"mkfs.ext4", "-q", "-F", disk + "1"}, {"mkswap", disk + "2"}, {"swapon", disk + "2"},
	} {
		if err := run(step...); err != nil {
			return nil, err
		}
	}
	if err := unix.Mount(disk+"1", root, "ext4", unix.MS_RDONLY, ""); err != nil {
		return nil, errors.Join(err, run("swapoff", disk+"2"))
	}
	return func() error {
		return errors.Join(unix.Unmount(root, 0), run("swapoff", disk+"2"),
			os.WriteFile(disk, make([]byte, len(mbr)), 0), run("blockdev", "--rereadpt", disk))
	}, nil
}

const lvmConfig = "/etc/lvm/lvm.conf"

// withDevicesFile returns the test kernel's configuration of lvm2 with a
// devices file, and without the filter, which lvm2 does not accept together
// with a devices file. It returns ErrNotOurs if the configuration is not the
// test kernel's.
func withDevicesFile() (string, error) {
	former, err := os.ReadFile(lvmConfig)
	text, filter, is := strings.Cut(strings.ReplaceAll(string(former), "use_devicesfile = 0", "use_devicesfile = 1"), "global_filter")
	if err != nil || !is || !strings.Contains(text, "use_devicesfile = 1") || strings.Count(filter, "\n") > 2 {
		return "", fmt.Errorf("lvm2's configuration is not the test kernel's: %w", ErrNotOurs)
	}
	return text + "}\n", nil
}

// DevicesFile gives lvm2 an empty devices file, and makes lvm2 use only the
// devices in that file.
func DevicesFile() (undo func() error, err error) {
	const devices = "/etc/lvm/devices"
	text, err := withDevicesFile()
	if err != nil {
		return nil, err
	}
	former, err := os.ReadFile(lvmConfig)
	if err != nil {
		return nil, err
	}
	undo = func() error { return errors.Join(os.WriteFile(lvmConfig, former, 0o644), os.RemoveAll(devices)) }
	err = errors.Join(os.WriteFile(lvmConfig, []byte(text), 0o644), os.MkdirAll(devices, 0o755),
		os.WriteFile(filepath.Join(devices, "system.devices"), nil, 0o600))
	return undo, err
}
