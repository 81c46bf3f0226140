//go:build kernel

package filesystem

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"testing"
)

// e2fsck runs only if the superblock asks for it, and only on a writable device
// that is not in use.
func TestCheck_whenNeeded(t *testing.T) {
	disk, target := disks(t, 1)[0], t.TempDir()
	wipe(t, disk)
	if err := Format(t.Context(), disk, Ext4); err != nil {
		t.Fatal(err)
	}
	d := Device{Path: disk, Type: Ext4}
	state := func() uint16 {
		f, err := os.Open(disk)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		sb, err := readExt4Super(f)
		if err != nil {
			t.Fatal(err)
		}
		return binary.LittleEndian.Uint16(sb[ext4State:])
	}
	check := func(what string, d Device, want error, faulty bool) {
		t.Helper()
		if err := d.Check(t.Context()); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
		if got := state()&ext4Faulty != 0; got != faulty {
			t.Errorf("%s: an error on record is %v", what, got)
		}
	}
	check("a sound one", d, nil, false)
	tool(t, "debugfs", "-w", "-R", "set_super_value state 3", disk)
	check("a read-only device", Device{Path: disk, Type: Ext4, ReadOnly: true}, nil, true)
	if err := d.Mount(target, true, nil); err != nil {
		t.Fatal(err)
	}
	check("one that is mounted", d, nil, true)
	if err := Unmount(target); err != nil {
		t.Fatal(err)
	}
	check("an error on record", d, nil, false)

	if err := d.Mount(target, false, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(target+"/file", []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "xfs_io", "-x", "-c", "shutdown -f", target) // ext4 also has this ioctl
	if err := Unmount(target); err != nil {
		t.Fatal(err)
	}
	if ok, err := d.Clean(); ok || err != nil {
		t.Fatalf("the journal is clean, %v: the test proves nothing", err)
	}
	check("a journal", d, nil, false)
	if ok, err := d.Clean(); !ok || err != nil {
		t.Errorf("the journal was not replayed: %v", err)
	}

	tool(t, "debugfs", "-w", "-R", "set_super_value state 3", disk)
	tool(t, "debugfs", "-w", "-R", "clri <2>", disk)
	check("damage", d, ErrDamaged, true)
	if out, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput(); err == nil {
		t.Errorf("the damage was repaired without a decision: %s", out)
	}
}
