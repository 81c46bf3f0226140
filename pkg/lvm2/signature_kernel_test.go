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
)

// TestSignature_tools: Signature recognizes the content of the usual tools, and
// CreateVG rejects such a disk.
func TestSignature_tools(t *testing.T) {
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

// TestSignature_formerPhysicalVolume: wipefs erases only the type of a label;
// the disk is then no physical volume, for lvm2 and for this package, for any
// sector of the label and any block size.
func TestSignature_formerPhysicalVolume(t *testing.T) {
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
					t.Fatalf("wipefs also erased the label's first bytes: %v", err)
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
