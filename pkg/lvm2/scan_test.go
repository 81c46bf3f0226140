//go:build !kernel

package lvm2

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
)

// TestScan_devices: Scan reports the volume group, the physical volume or the
// error of each device.
func TestScan_devices(t *testing.T) {
	h := testHost(t)
	disks := blankDisks(t, 4, diskSize)
	createVG(t, h, disks[:2], CreateOptions{})
	relabel(t, disks[1], func(l *label) { l.metadata = nil })
	overwrite(t, disks[2], 512, append([]byte("LABELONE\x01\x00\x00\x00\x00\x00\x00\x00wrong   LVM2 001"), make([]byte, 100)...))
	got, err := Scan(context.Background(), append(disks, "/nonexistent"))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		vg  string
		pv  bool
		err error
	}{{"vg", true, nil}, {"vg", true, nil}, {"", false, ErrDamaged}, {"", false, nil}, {"", false, os.ErrNotExist}} {
		if got[i].VG != want.vg || (got[i].PV != "") != want.pv || !errors.Is(got[i].Err, want.err) || (got[i].VGID != "") != (want.vg != "") {
			t.Errorf("%d: %+v, want %+v", i, got[i], want)
		}
		if i < 4 && got[i].Size != diskSize {
			t.Errorf("%d: size %v", i, got[i].Size)
		}
	}
	if !strings.Contains(got[2].Err.Error(), disks[2]) {
		t.Errorf("the error names no device: %v", got[2].Err)
	}
}
