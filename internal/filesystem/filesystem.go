// Package filesystem makes, probes, mounts and grows the file systems that
// volumes carry: ext4, xfs and btrfs. It works on block devices and paths and
// knows nothing of where a device comes from.
//
// Making and probing run the file systems' own tools (mkfs, blkid), which must
// be in PATH; bind mounts and unmounts are system calls.
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
	// ErrContent: the device holds something other than one plain file system:
	// a partition table, a RAID or LVM member, or several signatures at once.
	ErrContent = errors.New("unexpected content")
	// ErrDuplicate: the kernel cannot mount this file system because another
	// one with the same identity, its source or another copy, is mounted.
	ErrDuplicate = errors.New("a file system with the same identity is already mounted")
	// ErrNotGrown: the file system could not be extended to the end of its device.
	ErrNotGrown = errors.New("the file system was not grown")
	// ErrBusy: somebody uses the mount.
	ErrBusy = errors.New("mount is busy")
)

// Supported tells whether fsType is a file system this package handles.
func Supported(fsType string) bool {
	return fsType == Ext4 || fsType == XFS || fsType == Btrfs
}

// MinimumSize is the length of the smallest device on which the file system
// can be made and grown: mkfs.xfs refuses less, and btrfs cannot be resized to
// less, not even if that is more than it has.
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
	ReadOnly bool   // the kernel accepts no write to the device
	Copy     bool   // may carry the identity of a file system it was copied from
}

// run executes a tool and returns its standard output. The tool is killed when
// ctx ends, and with this process: a mkfs that outlived it would write to a
// device that the next process hands out.
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

// lastLines shortens what a tool said to its last lines: they name the error.
func lastLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-4):], "; ")
}
