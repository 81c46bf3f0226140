package filesystem

import (
	"context"
	"fmt"
)

// Format makes a file system on the whole device and overwrites its content: only
// the caller can know that the device holds nothing of value. mkfs does not
// discard the blocks, as the device is expected to be wiped.
func Format(ctx context.Context, device, fsType string) error {
	var err error
	switch fsType {
	case Ext4:
		// The kernel initialises the inode tables after the mount: mkfs would take
		// minutes on a large device. No blocks are reserved for root, because no
		// system processes depend on a volume.
		_, err = run(ctx, "mkfs.ext4", "-q", "-F", "-m", "0",
			"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", device)
	case XFS:
		_, err = run(ctx, "mkfs.xfs", "-q", "-f", "-K", device)
	case Btrfs:
		_, err = run(ctx, "mkfs.btrfs", "-q", "-f", "-K", device)
	default:
		err = fmt.Errorf("unknown file system %q", fsType)
	}
	if err != nil {
		return fmt.Errorf("make %s on %s: %w", fsType, device, err)
	}
	return nil
}
