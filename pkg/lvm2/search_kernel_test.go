//go:build kernel

package lvm2

import (
	"context"
	"strings"
	"testing"
)

// TestOpenVG_stackedPV: of a device and the devices stacked on it, which show
// the same label, the top one is the physical volume.
func TestOpenVG_stackedPV(t *testing.T) {
	disks := scratch(t, 2)
	if err := CreateVG(context.Background(), kernelHost, "vg", disks, CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	sectors := strings.TrimSpace(lvm(t, "blockdev", "--getsz", disks[1]))
	for _, c := range [][2]string{{"t-lower", disks[1]}, {"t-upper", "/dev/mapper/t-lower"}} {
		lvm(t, "dmsetup", "create", c[0], "--table", "0 "+sectors+" linear "+c[1]+" 0")
	}
	t.Cleanup(func() { lvm(t, "dmsetup", "remove", "t-upper", "t-lower") })
	const upper, lower = "/dev/mapper/t-upper", "/dev/mapper/t-lower"
	for _, order := range [][]string{{disks[0], disks[1], lower, upper}, {upper, disks[1], lower, disks[0]}} {
		s := openKernelVG(t, order)
		if got := read(t, s).PVs[1].Device; got != upper {
			t.Errorf("of %v the physical volume is %s", order, got)
		}
		s.Close()
	}
}
