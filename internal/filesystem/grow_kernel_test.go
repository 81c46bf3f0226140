//go:build kernel

package filesystem

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// A file system of the smallest size can be made, used, and grown while it is
// mounted.
func TestGrow_mounted(t *testing.T) {
	disk := disks(t, 1)[0]
	for _, fs := range fileSystems {
		t.Run(fs, func(t *testing.T) {
			small, large := MinimumSize(fs), 2*MinimumSize(fs)
			d := Device{Path: mapped(t, "grow-"+fs, linear(small, disk, 0)), Type: fs}
			wipe(t, d.Path)
			if err := Format(t.Context(), d.Path, fs); err != nil {
				t.Fatal(err)
			}
			if needs, err := d.NeedsGrow(); needs || err != nil {
				t.Errorf("new file system: NeedsGrow %t, %v", needs, err)
			}
			dir := mounted(t, d, false, "noatime")
			write(t, dir, "before")
			before, err := UsageOf(dir)
			if err != nil {
				t.Fatal(err)
			}
			if before.Total == 0 || before.Total > small || before.Used > before.Total || before.Available > before.Total {
				t.Errorf("usage of %v device: %+v", small, before)
			}
			if (before.Inodes == 0) != (fs == Btrfs) || before.InodesUsed+before.InodesFree != before.Inodes {
				t.Errorf("inodes: %+v", before)
			}
			reload(t, "grow-"+fs, linear(large, disk, 0))
			if got, err := DeviceSize(d.Path); got != large || err != nil {
				t.Errorf("DeviceSize %v, %v", got, err)
			}
			if err := d.Grow(t.Context(), dir); err != nil {
				t.Fatal(err)
			}
			after, err := UsageOf(dir)
			if err != nil || after.Total < before.Total+(large-small)*9/10 {
				t.Errorf("after growing from %v to %v: %v, before %v, %v", small, large, after.Total, before.Total, err)
			}
			if err := d.Grow(t.Context(), dir); err != nil {
				t.Errorf("grow again: %v", err)
			}
			expect(t, dir, "before")

			// The same for an unmounted file system, as a stage does it.
			unmount(t, dir)
			if needs, err := d.NeedsGrow(); needs || err != nil {
				t.Errorf("grown: NeedsGrow %t, %v", needs, err)
			}
			reload(t, "grow-"+fs, linear(large+32*size.MiB, disk, 0))
			if needs, err := d.NeedsGrow(); !needs || err != nil {
				t.Errorf("larger device: NeedsGrow %t, %v", needs, err)
			}
			if err := Format(t.Context(), d.Path, fs); err != nil {
				t.Errorf("format again: %v", err)
			}
		})
	}
}
