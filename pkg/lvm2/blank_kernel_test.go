//go:build kernel

package lvm2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What the usual tools put on a disk is recognised, and such a disk refused.
func TestSignatureOfTools(t *testing.T) {
	for _, c := range []struct{ command, want string }{
		{"mke2fs -q -t ext4 -F", "ext"},
		{"mkfs.xfs -q -f", "xfs"},
		{"mkfs.btrfs -q -f", "btrfs"},
		{"mkswap -q", "swap"},
		{"pvcreate -q -q", "LVM2"},
	} {
		disk := scratch(t, 1)[0]
		args := strings.Fields(c.command + " " + disk)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		found, err := Signature(disk)
		if err != nil || !strings.Contains(found, c.want) {
			t.Errorf("%s: found %q, %v", c.command, found, err)
		}
		if err := CreateVG(context.Background(), kernelHost, "vg", []string{disk}, CreateOptions{}); !errors.Is(err, ErrNotBlank) {
			t.Errorf("%s: %v", c.command, err)
		}
	}
}

func TestDeviceInUse(t *testing.T) {
	ctx := context.Background()
	disks := scratch(t, 2)
	if out, err := exec.Command("mke2fs", "-q", "-F", disks[0]).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dir := t.TempDir()
	if err := unix.Mount(disks[0], dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	err := CreateVG(ctx, kernelHost, "vg", []string{disks[1], disks[0]}, CreateOptions{})
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), disks[0]) {
		t.Errorf("a mounted disk: %v", err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	// A name that is taken elsewhere on this machine.
	scratch(t, 1)
	lvm(t, "vgcreate", "vg", disks[0])
	if err := CreateVG(ctx, kernelHost, "vg", disks[1:], CreateOptions{}); !errors.Is(err, ErrExists) {
		t.Errorf("a name that lvm2 uses: %v", err)
	}
	// Our own volume group's disk stays free for device-mapper.
	s := openKernelVG(t, disks[:1])
	if err := s.Extend(ctx, disks[1:]); err != nil {
		t.Fatal(err)
	}
	read(t, s)
	f, err := os.OpenFile(disks[1], os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		t.Fatalf("after Extend: %v", err)
	}
	f.Close()
}

// CheckLVName agrees with lvcreate; where it is stricter, the device or its
// snapshot could not be activated.
func TestNamesInterop(t *testing.T) {
	disks := scratch(t, 1)
	lvm(t, "vgcreate", "vg", disks[0])
	for i, name := range []string{"x-cow", "x-real", ".a", "+a", "0123", strings.Repeat("y", 119), "snapshot1", "pvmovex", "a_tmeta", "a_pmspare", "a b", "a@b", ".."} {
		ours := CheckLVName("vg", name) == nil
		_, _, err := tryLVM("lvcreate", "-an", "-Zn", "-Wn", "-l", "1", "-n", name, "vg")
		if ours != (err == nil) {
			t.Errorf("%d: %q: we accept it: %v; lvm2: %v", i, name, ours, err)
		}
	}
	s := openKernelVG(t, disks)
	for i, c := range []string{"a", "A9_+.-/=!:&#", strings.Repeat("t", maxTag)} {
		locked(t, s, addLV(fmt.Sprintf("tag%d", i), 0, Extents(100+i), 1))
		locked(t, s, func(vg *VG) error {
			lv := vg.LV(fmt.Sprintf("tag%d", i)).Clone()
			lv.Tags = []string{c}
			return vg.Replace(lv)
		})
		if row := fields(t, "lvs", "-o", "lv_tags", fmt.Sprintf("vg/tag%d", i))[0]; row[0] != c {
			t.Errorf("tag %q reads as %q", c, row[0])
		}
	}
	healthy(t)
}

// TestFormerPhysicalVolume: wipefs takes the type out of a label, and leaves all
// else. Then the disk is no physical volume, for lvm2 and for us, wherever the label
// was and whatever the size of the sectors.
func TestFormerPhysicalVolume(t *testing.T) {
	for sector := range labelSectors {
		for _, block := range []string{"512", "4096"} {
			t.Run(fmt.Sprintf("label in sector %d, blocks of %s", sector, block), func(t *testing.T) {
				disk := loopDisk(t, "-b", block)
				command(t, "pvcreate", "-qq", "--devices", disk, "--labelsector", fmt.Sprint(sector), disk)
				command(t, "vgcreate", "-qq", "--devices", disk, "former", disk)
				command(t, "vgremove", "-qq", "-y", "--devices", disk, "former")
				if _, unfit := Fit([]string{disk}, nil, 0); len(unfit) != 1 || !errors.Is(unfit[0].Err, ErrNotBlank) {
					t.Errorf("before it is wiped: %v", unfit)
				}
				command(t, "wipefs", "-qa", disk)
				if head, err := os.ReadFile(disk); err != nil || string(head[sector*512:][:8]) != labelMagic {
					t.Fatalf("the label's first bytes are gone too: %v", err)
				}
				if found, err := Signature(disk); found != "" || err != nil {
					t.Errorf("it has the signature of %s, %v", found, err)
				}
				if fit, unfit := Fit([]string{disk}, nil, 0); len(fit) != 1 {
					t.Errorf("it is not fit: %v", unfit)
				}
				if err := CreateVG(context.Background(), kernelHost, "fresh", []string{disk}, CreateOptions{}); err != nil {
					t.Fatal(err)
				}
				command(t, "vgck", "--devices", disk, "fresh")
			})
		}
	}
}
