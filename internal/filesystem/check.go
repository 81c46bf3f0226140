package filesystem

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// ErrDamaged: the file system has errors that e2fsck does not repair without
// decisions of the user, because the repair may lose data.
var ErrDamaged = errors.New("the file system is damaged")

const (
	ext4State = 0x3a // 16 bits of the superblock

	ext4Valid  = 1 << 0 // unmounted cleanly, or the file system has a journal
	ext4Faulty = 1 << 1 // the kernel has found an error
)

// Bits of the exit code of e2fsck, see e2fsck(8).
const (
	fsckRepaired   = 1
	fsckRebootToo  = 2
	fsckUnrepaired = 4
)

// checkLimit ends a check that hangs. A full check of a large file system takes
// hours.
const checkLimit = 6 * time.Hour

// Check repairs an ext4 whose superblock asks for a check, as far as the repair
// loses nothing, and replays its journal. The kernel would mount such a file
// system, but does not grow it, and the damage would spread. xfs and btrfs need no
// check: their mount does what can be done. Check does nothing to a device that
// is in use or read-only. Errors: ErrDamaged.
func (d Device) Check(ctx context.Context) error {
	if d.Type != Ext4 || d.ReadOnly {
		return nil
	}
	if needed, err := d.needsCheck(); !needed || err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Checking a file system", "device", d.Path, "type", d.Type)
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	_, err := run(ctx, "e2fsck", "-p", d.Path)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil || !errors.As(err, &exit):
		return fmt.Errorf("check %s: %w", d.Path, err)
	case !exit.Exited(): // the repair is incomplete, so the file system must not be mounted
		return fmt.Errorf("check %s: e2fsck was killed, perhaps for lack of memory: %w; give the driver's pod more memory, or run e2fsck -p %s on the node", d.Path, err, d.Path)
	}
	switch code := exit.ExitCode(); {
	case code <= fsckRepaired|fsckRebootToo:
		klog.FromContext(ctx).Info("Repaired a file system", "device", d.Path, "type", d.Type)
	case code&fsckUnrepaired != 0:
		return fmt.Errorf("%w: e2fsck cannot repair it without decisions: %w; take a snapshot if you can, then run e2fsck -f %s on the node", ErrDamaged, err, d.Path)
	default: // e2fsck could not check the file system, but the kernel may be able to mount it
		klog.FromContext(ctx).Error(err, "Failed to check a file system", "device", d.Path)
	}
	return nil
}

// needsCheck reports whether an ext4 that is not in use has an error on record,
// was not unmounted, or has a journal to replay, which may record an error.
func (d Device) needsCheck() (bool, error) {
	f, err := os.OpenFile(d.Path, os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	sb, err := readExt4Super(f)
	if err != nil {
		return false, fmt.Errorf("read %s superblock of %s: %w", d.Type, d.Path, err)
	}
	state := binary.LittleEndian.Uint16(sb[ext4State:])
	return state&ext4Faulty != 0 || state&ext4Valid == 0 || binary.LittleEndian.Uint32(sb[ext4Incompat:])&ext4NeedsRecovery != 0, nil
}
