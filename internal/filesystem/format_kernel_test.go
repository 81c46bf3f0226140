//go:build kernel

package filesystem

import (
	"errors"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

var fileSystems = []string{Ext4, XFS, Btrfs}

// A device that is too small, and an unknown file system, are refused.
func TestFormat_refused(t *testing.T) {
	disk := disks(t, 1)[0]
	dev := mapped(t, "refuse", linear(64*size.MiB, disk, 0))
	if err := Format(t.Context(), dev, XFS); err == nil {
		t.Error("xfs on 64 MiB: no error")
	}
	if err := Format(t.Context(), dev, "vfat"); err == nil {
		t.Error("vfat: no error")
	}
	wipe(t, dev)
	if _, err := (Device{Path: dev, Type: Ext4}).NeedsGrow(); !errors.Is(err, errNoSuperblock) {
		t.Errorf("NeedsGrow of a blank device: %v", err)
	}
	if err := (Device{Path: dev, Type: Ext4}).Mount(t.TempDir(), false, nil); err == nil {
		t.Error("mounted a blank device")
	}
}
