// Package contender has the compared ways to make volumes and snapshots: the
// driver through its CSI socket, lvm2's snapshots, and lvm2's thin volumes.
// Each has a disk of its own.
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

// Contender makes volumes and snapshots. Their names are unique within the
// contender.
type Contender interface {
	Title() string // the name in the results
	Disk() disk.Disk
	// Create makes a volume without a device: a block volume if block is set,
	// else a volume for a file system.
	Create(volume string, length size.Bytes, block bool) error
	Delete(volume string) error
	// Attach makes the device of a block volume and returns its path.
	Attach(volume string) (string, error)
	Detach(volume string) error
	// Mount makes an ext4 on a new volume, mounts it and returns the directory.
	Mount(volume string) (string, error)
	Unmount(volume string) error
	// Snapshot takes a snapshot of a volume. A contender that must fix the size
	// of the snapshot's store in advance uses store.
	Snapshot(volume, snapshot string, store size.Bytes) error
	DeleteSnapshot(volume, snapshot string) error
	// Clear deletes a volume with all its snapshots, in any way.
	Clear(volume string, snapshots []string) error
}

// Ours is the title of the driver.
const Ours = "ours"

// command runs a program. If the program fails, the error has its output.
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
	// The options are the driver's.
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
