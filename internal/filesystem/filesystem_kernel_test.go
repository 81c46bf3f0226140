//go:build kernel

package filesystem

import (
	"errors"
	"os"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

var fileSystems = []string{Ext4, XFS, Btrfs}

func TestProbe(t *testing.T) {
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

// A file system of the smallest size is made, used, and grown while mounted.
func TestFormatAndGrow(t *testing.T) {
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

			// The unmounted way, as a stage does it.
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

func TestFormatRefuses(t *testing.T) {
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

func TestBind(t *testing.T) {
	disk := disks(t, 1)[0]
	d := Device{Path: mapped(t, "bind", linear(32*size.MiB, disk, 0)), Type: Ext4}
	wipe(t, d.Path)
	if err := Format(t.Context(), d.Path, Ext4); err != nil {
		t.Fatal(err)
	}
	staged := mounted(t, d, false, "nosuid")
	write(t, staged, "content")
	target := t.TempDir()
	if m, err := MountAt(target); m != nil || err != nil {
		t.Errorf("MountAt of a plain directory: %v, %v", m, err)
	}
	if err := Bind(staged, target, true, []string{"noexec", "data=ordered"}); err != nil {
		t.Fatal(err)
	}
	expect(t, target, "content")
	if err := os.WriteFile(target+"/x", nil, 0o600); err == nil {
		t.Error("read-only bind mount was written to")
	}
	write(t, staged, "changed")
	expect(t, target, "changed")
	bind, err := MountAt(target)
	if err != nil || bind == nil {
		t.Fatalf("MountAt: %v, %v", bind, err)
	}
	for _, want := range []string{"ro", "noexec", "nosuid"} {
		if !HasOption(bind, want) {
			t.Errorf("bind mount has options %s, wanted %s", bind.Options, want)
		}
	}
	stage, err := MountAt(staged)
	if err != nil || !SameContent(stage, bind) {
		t.Errorf("staging and bind mount differ: %+v, %+v, %v", stage, bind, err)
	}
	f, err := os.Open(target)
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmount(target); !errors.Is(err, ErrBusy) {
		t.Errorf("unmount of a busy mount: %v", err)
	}
	f.Close()
	for range 2 {
		if err := Unmount(target); err != nil {
			t.Error(err)
		}
	}
	if err := Bind("/none", target, false, nil); err == nil {
		t.Error("bound a path that is not there")
	}
}
