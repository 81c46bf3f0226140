//go:build kernel

package filesystem

import (
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// A mount needs no program, unless an option belongs to mount(8), which then gets
// it.
func TestMount_withoutProgram(t *testing.T) {
	disk := disks(t, 1)[0]
	for _, fsType := range []string{Ext4, XFS, Btrfs} {
		t.Run(fsType, func(t *testing.T) {
			d := Device{Path: mapped(t, "call-"+fsType, linear(320*size.MiB, disk, 0)), Type: fsType}
			wipe(t, d.Path)
			if err := Format(t.Context(), d.Path, fsType); err != nil {
				t.Fatal(err)
			}
			at := t.TempDir()
			for _, options := range [][]string{nil, {"noatime", "discard"}, {"x-csi.test=1"}} {
				if err := d.Mount(at, false, options); err != nil {
					t.Fatalf("with the options %q: %v", options, err)
				}
				unmount(t, at)
			}
			t.Setenv("PATH", t.TempDir())
			if err := d.Mount(at, false, []string{"noatime", "nosuid", "discard"}); err != nil {
				t.Fatalf("without programs: %v", err)
			}
			m, err := MountAt(at)
			if err != nil || m == nil || m.Source != d.Path || !HasOption(m, "noatime") || !HasOption(m, "nosuid") || !strings.Contains(m.VFSOptions, "discard") {
				t.Errorf("the mount is %+v, %v", m, err)
			}
			unmount(t, at)
			if err := d.Mount(at, false, []string{"x-csi.test=1"}); err == nil || !strings.Contains(err.Error(), "executable file not found") {
				t.Errorf("mount(8) was not used for its option: %v", err)
			}
		})
	}
}
