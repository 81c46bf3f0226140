//go:build kernel

package filesystem

import (
	"errors"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// A device is blank only if it has no signature and both of its ends can be
// read.
func TestProbe_contents(t *testing.T) {
	disk := disks(t, 1)[0]
	dev := mapped(t, "probe", linear(64*size.MiB, disk, 0))
	mbr := make([]byte, 512)
	mbr[446+4], mbr[446+8], mbr[446+13] = 0x83, 8, 16 // a Linux partition at sector 8
	mbr[510], mbr[511] = 0x55, 0xaa
	pv := make([]byte, 512)
	copy(pv, "LABELONE")
	pv[8] = 1

	check := func(what, want string, wantErr error) {
		t.Helper()
		got, err := Probe(t.Context(), dev)
		if got != want || (err == nil) != (wantErr == nil) || wantErr != nil && !errors.Is(err, wantErr) {
			t.Errorf("%s: Probe returned %q, %v", what, got, err)
		}
	}
	wipe(t, dev)
	check("blank", "", nil)
	writeAt(t, dev, 0, mbr)
	check("partition table", "", ErrContent)
	for _, fs := range []string{Ext4, Btrfs} {
		wipe(t, dev)
		if fs == Btrfs {
			reload(t, "probe", linear(MinimumSize(Btrfs), disk, 0))
		}
		if err := Format(t.Context(), dev, fs); err != nil {
			t.Fatal(err)
		}
		check(fs, fs, nil)
	}
	writeAt(t, dev, 1024+0x38, []byte{0x53, 0xef}) // the magic number of ext4
	check("two file systems", "", ErrContent)
	if _, err := Probe(t.Context(), "/dev/mapper/none"); err == nil {
		t.Error("missing device is taken for blank")
	}
	wipe(t, dev)
	const first, last = "0 2048 error\n2048 129024 linear ", "0 129024 linear "
	reload(t, "probe", first+disk+" 2048")
	if _, err := Probe(t.Context(), dev); err == nil {
		t.Error("unreadable begin is taken for blank")
	}
	reload(t, "probe", last+disk+" 0\n129024 2048 error")
	if _, err := Probe(t.Context(), dev); err == nil {
		t.Error("unreadable end is taken for blank")
	}
}
