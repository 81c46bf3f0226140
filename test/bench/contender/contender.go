// Package contender has the ways to make volumes and snapshots that are
// compared: the driver through its CSI socket, lvm2's snapshots, and lvm2's thin
// volumes, each on a disk of its own.
package contender

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/disk"
)

// Contender makes volumes and snapshots. Names are of volumes and snapshots of
// this run, unique for each of them.
type Contender interface {
	Title() string // as in the results
	Disk() disk.Disk
	// Create makes a volume without a device, for a file system or, with block,
	// as a bare device.
	Create(volume string, length size.Bytes, block bool) error
	Delete(volume string) error
	// Attach makes the device of a bare volume and returns its path.
	Attach(volume string) (string, error)
	Detach(volume string) error
	// Mount makes an ext4 on a volume that has none, mounts it and returns where.
	Mount(volume string) (string, error)
	Unmount(volume string) error
	// Snapshot takes one of a volume. Who has to say in advance how large its
	// store is takes store.
	Snapshot(volume, snapshot string, store size.Bytes) error
	DeleteSnapshot(volume, snapshot string) error
	// Clear deletes a volume with all its snapshots, however.
	Clear(volume string, snapshots []string) error
}

// Ours is the title of the driver.
const Ours = "ours"

// command runs a program and returns its error with what it printed.
func command(args ...string) error {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

func mebibytes(n size.Bytes) string { return fmt.Sprintf("%dm", n.RoundUp(size.MiB)/size.MiB) }

// mountExt4 makes a file system and mounts it at dir.
func mountExt4(device, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// Options as the driver's.
	if err := command("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", device); err != nil {
		return err
	}
	if err := unix.Mount(device, dir, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s at %s: %w", device, dir, err)
	}
	return nil
}

func unmount(dir string) error {
	if err := unix.Unmount(dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}
