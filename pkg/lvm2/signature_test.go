//go:build !kernel

package lvm2

import (
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestSignature_magics: Signature recognizes each known content at its offset,
// and no content on a blank disk.
func TestSignature_magics(t *testing.T) {
	check := func(name string, length size.Bytes, at int64, b, want string) {
		t.Helper()
		disk := blankDisks(t, 1, length)[0]
		if got, err := Signature(disk); got != "" || err != nil {
			t.Fatalf("blank disk: %q, %v", got, err)
		}
		if at < 0 {
			at += int64(length)
		}
		overwrite(t, disk, at, []byte(b))
		if got, err := Signature(disk); !strings.Contains(got, want) || got == "" || err != nil {
			t.Errorf("%s at %d of %v: %q, %v", name, at, length, got, err)
		}
	}
	for _, m := range magics {
		check(m.name, 3*size.MiB, m.at, m.bytes, "")
	}
	for n := range labelSectors {
		check("LVM2", size.MiB, int64(n)*512, labelMagic+string(rune(n))+strings.Repeat("\x00", 15)+labelType, "LVM2")
	}
	for page := int64(4096); page <= 65536; page *= 2 {
		check("swap", size.MiB, page-10, "SWAPSPACE2", "swap")
		check("hibernation", size.MiB, page-10, "S1SUSPEND\x00", "hibernation")
	}
	const odd = 3*size.MiB + 12*size.KiB
	check("md 1.0", odd, int64(odd-8*size.KiB), "\xfc\x4e\x2b\xa9", "RAID")
	check("md 0.90", odd, int64(odd/(64*size.KiB)*64*size.KiB-64*size.KiB), "\xfc\x4e\x2b\xa9", "RAID")
	for label, at := range []size.Bytes{0, 256 * size.KiB, odd/(256*size.KiB)*256*size.KiB - 512*size.KiB, odd/(256*size.KiB)*256*size.KiB - 256*size.KiB} {
		check("zfs", odd, int64(at+128*size.KiB+5*size.KiB), "\x0c\xb1\xba\x00\x00\x00\x00\x00", "ZFS pool member (label "+string(rune('0'+label)))
	}
	for _, length := range []size.Bytes{0, 512, 2048, 4096, 70000 / 512 * 512} {
		if got, err := Signature(blankDisks(t, 1, length)[0]); got != "" || err != nil {
			t.Errorf("blank disk of %v: %q, %v", length, got, err)
		}
	}
}
