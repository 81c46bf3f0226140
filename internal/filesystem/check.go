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

// ErrDamaged: the file system has errors that cannot be repaired without a
// decision: what is repaired may be lost.
var ErrDamaged = errors.New("the file system is damaged")

const (
	ext4State = 0x3a // 16 bits of the superblock

	ext4Valid  = 1 << 0 // unmounted cleanly, or there is a journal
	ext4Faulty = 1 << 1 // the kernel has met an error
)

// Exit codes of e2fsck, see e2fsck(8).
const (
	fsckRepaired   = 1
	fsckRebootToo  = 2
	fsckUnrepaired = 4
)

// checkLimit ends a check that does not: a full one of a large file system takes hours.
const checkLimit = 6 * time.Hour

// Check repairs an ext4 whose superblock asks for it, as far as that loses
// nothing, and replays its journal. The kernel mounts such a file system, but
// does not grow it, and damage spreads. xfs and btrfs have nothing like that:
// the mount does what can be done. One that somebody has mounted, or that cannot
// be written, stays as it is. Errors: ErrDamaged.
func (d Device) Check(ctx context.Context) error {
	if d.Type != Ext4 || d.ReadOnly {
		return nil
	}
	if asks, err := d.asksForCheck(); !asks || err != nil {
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
	case !exit.Exited(): // nobody mounts what is repaired by half
		return fmt.Errorf("check %s: e2fsck was killed, perhaps for lack of memory: %w; give the driver's pod more memory, or run e2fsck -p %s on the node", d.Path, err, d.Path)
	}
	switch code := exit.ExitCode(); {
	case code <= fsckRepaired|fsckRebootToo:
		klog.FromContext(ctx).Info("Repaired a file system", "device", d.Path, "type", d.Type)
	case code&fsckUnrepaired != 0:
		return fmt.Errorf("%w: e2fsck cannot repair it without decisions: %w; take a snapshot if you can, then run e2fsck -f %s on the node", ErrDamaged, err, d.Path)
	default: // it could not check: the kernel may well mount it
		klog.FromContext(ctx).Error(err, "Failed to check a file system", "device", d.Path)
	}
	return nil
}

// asksForCheck reports whether an ext4 that nobody uses has an error on record, was
// not unmounted, or has a journal that may tell of an error.
func (d Device) asksForCheck() (bool, error) {
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
