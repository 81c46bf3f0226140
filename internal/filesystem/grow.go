package filesystem

import (
	"context"
	"fmt"
)

// Grow extends the mounted file system to the end of its device. The mount point
// must be writable. A file system that fills its device is not changed. Errors:
// ErrNotGrown.
func (d Device) Grow(ctx context.Context, mountpoint string) error {
	var err error
	switch d.Type {
	case Ext4:
		_, err = run(ctx, "resize2fs", d.Path)
	case XFS:
		_, err = run(ctx, "xfs_growfs", "-d", mountpoint)
	case Btrfs:
		_, err = run(ctx, "btrfs", "filesystem", "resize", "max", mountpoint)
	default:
		err = fmt.Errorf("unknown file system %q", d.Type)
	}
	if err != nil {
		return fmt.Errorf("%w: %s of %s at %s: %w", ErrNotGrown, d.Type, d.Path, mountpoint, err)
	}
	return nil
}
