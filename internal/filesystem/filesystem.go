// Package filesystem makes, probes, checks, mounts and grows the file systems of
// volumes: ext4, xfs and btrfs. It works on block devices and paths, and does not
// depend on where a device comes from.
//
// The package runs the tools mkfs.*, blkid, e2fsck, resize2fs, xfs_growfs, btrfs
// and mount, which must be in PATH. It starts mount only for what the system call
// does not do.
//
// The package has no state, so all functions may be called concurrently. The
// caller makes sure that only one call at a time changes a device or a mount
// point.
package filesystem

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The supported file systems.
const (
	Ext4  = "ext4"
	XFS   = "xfs"
	Btrfs = "btrfs"
)

var (
	// ErrContent: the device does not hold one plain file system. It may hold a
	// partition table, a RAID or LVM member, or several signatures.
	ErrContent = errors.New("unexpected content")
	// ErrDuplicate: the kernel cannot mount this file system because its source or
	// another copy, which has the same identity, is mounted.
	ErrDuplicate = errors.New("a file system with the same identity is already mounted")
	// ErrNotGrown: the file system could not be extended to the end of its device.
	ErrNotGrown = errors.New("the file system was not grown")
	// ErrBusy: the mount or the device is in use.
	ErrBusy = errors.New("mount is busy")
)

// Supported reports whether this package supports the file system fsType.
func Supported(fsType string) bool {
	return fsType == Ext4 || fsType == XFS || fsType == Btrfs
}

// MinimumSize returns the size of the smallest device on which the file system
// can be made and grown. mkfs.xfs refuses smaller devices. btrfs refuses to be
// resized to less, even if that is more than its present size.
func MinimumSize(fsType string) size.Bytes {
	switch fsType {
	case XFS:
		return 300 * size.MiB
	case Btrfs:
		return 256 * size.MiB
	default:
		return 4 * size.MiB
	}
}

// Device is a block device with a file system.
type Device struct {
	Path     string // the device node
	Type     string // Ext4, XFS or Btrfs
	ReadOnly bool   // the kernel accepts no writes to the device
	Copy     bool   // the file system may have the identity of the one it was copied from
}

// run executes a tool and returns its standard output. The kernel kills the tool
// when this process dies: a mkfs that outlived it would write to a device that the
// next process uses. The tool is also killed when ctx ends. The error wraps an
// *exec.ExitError, or the error of ctx after its end.
func run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return string(out), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, lastLines(stderr.String()+string(out)))
	}
	return string(out), nil
}

// lastLines returns the last lines of a tool's output, which name the error.
func lastLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-4):], "; ")
}
