//go:build kernel

package pool

import (
	"context"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// byID is a directory of links to devices, like /dev/disk/by-id of udev.
type byID struct {
	*testing.T
	dir  string
	want map[string]string // the expected reason for a link's device; "" if it is used
}

func newByID(t *testing.T) *byID { return &byID{t, t.TempDir(), map[string]string{}} }

// link makes a link to a device, with the expected reason.
func (b *byID) link(name, device, why string) {
	b.Helper()
	ok(b.T, os.Symlink(device, filepath.Join(b.dir, name)))
	b.want[name] = why
}

func (b *byID) pattern() string { return filepath.Join(b.dir, "nvme-*") }

// loop makes a disk on a new file.
func (b *byID) loop(length string, options ...string) string {
	b.Helper()
	dir := b.TempDir()
	ok(b.T, unix.Mount("disk", dir, "tmpfs", 0, ""))
	b.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	file := filepath.Join(dir, "disk")
	command(b.T, "truncate", "-s", length, file)
	return looped(b.T, file, options...)
}

// partitioned makes a disk with two DOS partitions of 64 MiB. The first is mounted.
func (b *byID) partitioned() string {
	b.Helper()
	disk := b.loop("160M", "-P")
	mbr := make([]byte, 512)
	copy(mbr[446:], []byte{0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 2, 0})
	copy(mbr[462:], []byte{0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 2, 0, 0, 0, 2, 0})
	mbr[510], mbr[511] = 0x55, 0xaa
	ok(b.T, os.WriteFile(disk, mbr, 0))
	command(b.T, "blockdev", "--rereadpt", disk)
	b.mounted(disk + "p1")
	return disk
}

func (b *byID) mounted(device string) {
	b.Helper()
	command(b.T, "mkfs.ext4", "-q", "-F", device)
	dir := b.TempDir()
	ok(b.T, unix.Mount(device, dir, "ext4", 0, ""))
	b.Cleanup(func() { unix.Unmount(dir, 0) })
}

// check compares the reasons for the devices that were left out.
func (b *byID) check(left []LeftOut) {
	b.Helper()
	said := map[string]string{}
	for _, l := range left {
		said[filepath.Base(l.Device)] = l.Why
		if strings.Contains(l.Why, "\n") {
			b.Errorf("%s: more than a line: %q", l.Device, l.Why)
		}
	}
	for name, want := range b.want {
		got := said[name]
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			b.Errorf("%s: %q, want %q", name, got, want)
		}
		if wipe := strings.Contains(got, "wipe"); wipe != strings.HasPrefix(name, "nvme-former") {
			b.Errorf("%s: advice to wipe is %v: %q", name, wipe, got)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(said)) {
		if _, known := b.want[name]; !known {
			b.Errorf("%s: %q", name, said[name])
		}
	}
}

// TestChoose_patternOfAllDisks: with a pattern that matches all devices of a machine, the
// pool is made of, and extended by, the blank free devices, each once. The others are
// left out with a reason. No message advises to wipe a device in use.
func TestChoose_patternOfAllDisks(t *testing.T) {
	ctx := context.Background()
	disks := testDisks(t)
	b := newByID(t)
	for _, name := range []string{"nvme-Disk_A_1", "nvme-Disk_A_1_1", "nvme-eui.01"} {
		b.link(name, disks[0], "")
	}
	system := b.partitioned()
	b.link("nvme-System", system, "has partitions")
	b.link("nvme-System-part1", system+"p1", "in use")
	b.link("nvme-System-part2", system+"p2", "partition of "+system)
	whole := b.loop("64M")
	b.mounted(whole)
	b.link("nvme-mounted", whole, "in use")
	former := b.loop("64M")
	command(t, "mkfs.ext4", "-q", "-F", former)
	b.link("nvme-former", former, "ext4")
	b.link("nvme-tiny", b.loop("8M"), "too small")
	b.link("nvme-readonly", b.loop("64M", "-r"), "read-only")
	b.link("nvme-controller", "/dev/null", "character device")
	b.link("nvme-directory", t.TempDir(), "directory")
	b.link("nvme-gone", "/dev/nvme99n1", "no such file")
	theirs := b.loop("128M")
	command(t, "vgcreate", "-qq", "--devices", theirs, "vgtheirs", theirs)
	t.Cleanup(func() { exec.Command("vgremove", "-ff", "-y", "--devices", theirs, "vgtheirs").Run() })
	b.link("nvme-theirs", theirs, "used by dm-")
	command(t, "lvcreate", "-qq", "-y", "-Wn", "-Zn", "--devices", theirs, "-L", "64m", "-n", "blank", "vgtheirs")
	t.Cleanup(func() { exec.Command("vgchange", "-an", "--devices", theirs, "vgtheirs").Run() })
	b.link("nvme-logical", "/dev/mapper/vgtheirs-blank", "logical volume of vgtheirs")
	idle := b.loop("64M")
	command(t, "vgcreate", "-qq", "--devices", idle, "vgidle", idle)
	t.Cleanup(func() { exec.Command("vgremove", "-ff", "-y", "--devices", idle, "vgidle").Run() })
	b.link("nvme-idle", idle, "volume group vgidle")
	orphan := b.loop("64M")
	command(t, "pvcreate", "-qq", "--devices", orphan, orphan)
	b.link("nvme-former-pv", orphan, "in no volume group")
	held := b.loop("64M")
	command(t, "dmsetup", "create", "holder", "--noudevsync", "--table", "0 2048 linear "+held+" 0")
	t.Cleanup(func() { exec.Command("dmsetup", "remove", "--noudevsync", "holder").Run() })
	b.link("nvme-held", held, "used by")
	claim := b.loop("64M") // like the kubelet's, for a block volume of a pod
	looped(t, claim)
	b.link("nvme-claim", claim, "used by")

	c := Config{Name: "pool", VolumeGroup: "vgpattern", Devices: []string{b.pattern()}, Create: true}
	p := openPool(t, c)
	t.Cleanup(func() {
		ok(t, p.Close())
		command(t, "vgremove", "-ff", "-y", "vgpattern")
	})
	if vg := must(p.latest())(t).VG; len(vg.PVs) != 1 || filepath.Dir(vg.PVs[0].Device) != b.dir || b.want[filepath.Base(vg.PVs[0].Device)] != "" {
		t.Errorf("the group was made of %v", vg.PVs[0].Device)
	}
	b.check(p.outside.leftOuts())
	if health := p.PoolHealth(ctx); len(health) > 0 {
		t.Errorf("the pool's health is %v", health)
	}
	b.check(must(Inspect(ctx, c, Options{}))(t).LeftOut)
	if found := must(Verify(ctx, c, Options{}))(t).Findings; len(found) > 0 {
		t.Errorf("Verify found %v", found)
	}

	// Another disk appears, with three names.
	ok(t, p.Close())
	for _, name := range []string{"nvme-Disk_B_2", "nvme-Disk_B_2_1", "nvme-eui.02"} {
		b.link(name, disks[1], "")
	}
	p = openPool(t, c)
	if n := len(must(p.latest())(t).VG.PVs); n != 2 {
		t.Errorf("the group has %d disks", n)
	}
	b.check(p.outside.leftOuts())
}

// TestChoose_diskSmallerThanExtent: a disk without room for an extent of the pool's size
// is left out, and the pool is made of the others.
func TestChoose_diskSmallerThanExtent(t *testing.T) {
	b := newByID(t)
	b.link("nvme-large", b.loop("400M"), "")
	b.link("nvme-small", b.loop("64M"), "too small")
	c := Config{Name: "pool", VolumeGroup: "vglarge", Devices: []string{b.pattern()}, Create: true, ExtentSize: 128 * size.MiB}
	p := openPool(t, c)
	t.Cleanup(func() {
		ok(t, p.Close())
		command(t, "vgremove", "-ff", "-y", "vglarge")
	})
	if vg := must(p.latest())(t).VG; len(vg.PVs) != 1 || vg.ExtentSize.Bytes() != c.ExtentSize {
		t.Errorf("the group has %d disks and extents of %v", len(vg.PVs), vg.ExtentSize.Bytes())
	}
	b.check(p.outside.leftOuts())
}

// TestHindrance_nothingFits: if no device is fit, the error has a reason for each match.
// No pool is made of fit devices if another match may be a damaged disk of the pool, or
// if a named device is not fit.
func TestHindrance_nothingFits(t *testing.T) {
	disks := testDisks(t)
	for _, c := range []struct {
		name string
		make func(b *byID) (devices []string)
		want []string
	}{
		{"only the system disk", func(b *byID) []string {
			system := b.partitioned()
			b.link("nvme-System", system, "")
			b.link("nvme-System-part2", system+"p2", "")
			return []string{b.pattern()}
		}, []string{"has partitions", "partition of"}},
		{"no match", func(b *byID) []string { return []string{b.pattern()} }, []string{"no device matches"}},
		{"a named disk is in use", func(b *byID) []string {
			busy := b.loop("64M")
			b.mounted(busy)
			return []string{busy, disks[0]}
		}, []string{"in use"}},
		{"a match is a damaged physical volume", func(b *byID) []string {
			damaged := b.loop("64M")
			command(t, "pvcreate", "-qq", "--devices", damaged, damaged)
			f := must(os.OpenFile(damaged, os.O_RDWR, 0))(t)
			must(f.WriteAt([]byte("damage"), 512+40))(t)
			ok(t, f.Close())
			b.link("nvme-damaged", damaged, "")
			b.link("nvme-blank", disks[0], "")
			return []string{b.pattern()}
		}, []string{"nvme-damaged", "damaged"}},
		{"the pool's volumes are on a match that shows nothing", func(b *byID) []string {
			own := b.loop("64M")
			command(t, "vgcreate", "-qq", "--devices", own, "vgnothing", own)
			command(t, "lvcreate", "-qq", "-y", "-Wn", "-Zn", "--devices", own, "-L", "8m", "-n", "v", "vgnothing")
			b.Cleanup(func() { exec.Command("dmsetup", "remove", "--noudevsync", "vgnothing-v").Run() })
			writeDevice(b.T, own, 0, make([]byte, 4096))
			b.link("nvme-own", own, "")
			b.link("nvme-blank", disks[0], "")
			return []string{b.pattern()}
		}, []string{"nvme-own", "used by"}},
		{"a match cannot be read", func(b *byID) []string {
			command(t, "dmsetup", "create", "failing", "--noudevsync", "--table", "0 131072 error")
			b.Cleanup(func() { exec.Command("dmsetup", "remove", "--noudevsync", "failing").Run() })
			b.link("nvme-failing", "/dev/mapper/failing", "")
			b.link("nvme-blank", disks[0], "")
			return []string{b.pattern()}
		}, []string{"nvme-failing", "input/output error"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newByID(t)
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			p, err := Open(ctx, Config{Name: "pool", VolumeGroup: "vgnothing", Devices: c.make(b), Create: true}, Options{})
			if err == nil {
				ok(t, p.Close())
				command(t, "vgremove", "-ff", "-y", "vgnothing")
				t.Fatal("a pool was made")
			}
			for _, want := range c.want {
				if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), want) {
					t.Errorf("the error is %v, want %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "wipe") {
				t.Errorf("the error advises to wipe: %v", err)
			}
			if found := must(lvm2.Signature(disks[0]))(t); found != "" {
				t.Errorf("%s has a signature: %s", disks[0], found)
			}
		})
	}
}

// TestChoose_namedPartition: a partition that the configuration names is used, even
// beside its disk.
func TestChoose_namedPartition(t *testing.T) {
	b := newByID(t)
	system := b.partitioned()
	b.link("nvme-System", system, "has partitions")
	b.link("nvme-System-part1", system+"p1", "in use")
	c := Config{Name: "pool", VolumeGroup: "vgpartition", Devices: []string{b.pattern(), system + "p2"}, Create: true}
	p := openPool(t, c)
	if vg := must(p.latest())(t).VG; len(vg.PVs) != 1 || vg.PVs[0].Device != system+"p2" {
		t.Errorf("the group was made of %v", vg.PVs[0].Device)
	}
	b.check(p.outside.leftOuts())
	ok(t, p.Close())
	command(t, "vgremove", "-ff", "-y", "vgpartition")
}

// TestDevicesFile_newAndExtended: the disks of a new and of an extended pool are entered
// in lvm2's devices file. Verify finds disks that are not in the file.
func TestDevicesFile_newAndExtended(t *testing.T) {
	ctx := context.Background()
	disks := testDisks(t)
	file := filepath.Join(t.TempDir(), "system.devices")
	ok(t, os.WriteFile(file, []byte("VERSION=1.1.3\n"), 0o600))
	o := Options{LVM: lvm2.Host{DevicesFile: file}}
	c := Config{Name: "pool", VolumeGroup: "vgdevicesfile", Create: true}
	for n := 1; n <= 2; n++ { // a new group, then an extended group
		c.Devices = disks[:n]
		p := must(Open(ctx, c, o))(t)
		for _, pv := range must(p.latest())(t).VG.PVs {
			if text := must(os.ReadFile(file))(t); !strings.Contains(string(text), " DEVNAME="+pv.Device+" PVID="+string(pv.ID)+"\n") {
				t.Errorf("%s is not in the devices file\n%s", pv.Device, text)
			}
		}
		ok(t, p.Close())
		if found := must(Verify(ctx, c, o))(t).Findings; len(found) > 0 {
			t.Errorf("Verify found %v", found)
		}
	}
	text := string(must(os.ReadFile(file))(t))
	ok(t, os.WriteFile(file, []byte(text[:strings.LastIndex(text, "IDTYPE")]), 0o600))
	if found := must(Verify(ctx, c, o))(t).Findings; len(found) != 1 || found[0].Reason != "NotInDevicesFile" || !strings.Contains(found[0].Do, "lvmdevices --adddev "+disks[1]) {
		t.Errorf("Verify found %v", found)
	}
	command(t, "vgremove", "-ff", "-y", c.VolumeGroup)
}

// TestEnterFile_otherPath: if the kernel reports another path for the pool's file, its
// loop device is entered again, and only once.
func TestEnterFile_otherPath(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	ok(t, unix.Mount("files", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	devices := filepath.Join(dir, "system.devices")
	ok(t, os.WriteFile(devices, []byte("VERSION=1.1.3\n"), 0o600))
	o := Options{LVM: lvm2.Host{DevicesFile: devices}}
	c := Config{Name: "pool", VolumeGroup: "vgfile", File: filepath.Join(dir, "pool"), Size: 64 * size.MiB}
	for range 2 {
		p := must(Open(ctx, c, o))(t)
		loop := must(p.latest())(t).VG.PVs[0].Device
		ok(t, p.Close())
		text := string(must(os.ReadFile(devices))(t))
		if strings.Count(text, "IDNAME="+c.File+" ") != 1 {
			t.Errorf("the file is not entered exactly once:\n%s", text)
		}
		if found := must(Verify(ctx, c, o))(t).Findings; len(found) > 0 {
			t.Errorf("Verify found %v", found)
		}
		t.Cleanup(func() { exec.Command("losetup", "-d", loop).Run() })
		ok(t, os.WriteFile(devices, []byte(strings.ReplaceAll(text, "IDNAME="+dir, "IDNAME=")), 0o600))
	}
	command(t, "vgremove", "-ff", "-y", c.VolumeGroup)
}

// TestChoose_twoPaths: two SCSI paths to one disk do not count as two disks.
func TestChoose_twoPaths(t *testing.T) {
	disks := testDisks(t)
	d := newHotDisk(t)
	set := func(key, value string) { ok(t, os.WriteFile(filepath.Join(scsiDebug, key), []byte(value), 0)) }
	d.remove()
	set("vpd_use_hostno", "0")
	set("add_host", "1")
	t.Cleanup(func() {
		d.remove()
		set("add_host", "-1")
		set("vpd_use_hostno", "1")
	})
	d.attach()
	var paths []string
	for end := time.Now().Add(20 * time.Second); len(paths) < 2; time.Sleep(20 * time.Millisecond) {
		if paths, _ = filepath.Glob("/dev/sd[a-z]"); time.Now().After(end) {
			t.Fatalf("only the disks %v appeared, want two", paths)
		}
	}
	b := newByID(t)
	b.link("nvme-a", disks[0], "")
	b.link("nvme-path-1", paths[0], paths[1]+" has the same WWID")
	b.link("nvme-path-2", paths[1], paths[0]+" has the same WWID")
	c := Config{Name: "pool", VolumeGroup: "vgpaths", Devices: []string{b.pattern()}, Create: true}
	p := must(Open(context.Background(), c, Options{}))(t)
	b.check(p.outside.leftOuts())
	if n := len(must(p.latest())(t).VG.PVs); n != 1 {
		t.Errorf("the group has %d disks", n)
	}
	ok(t, p.Close())
	c.Devices = append(c.Devices, paths[1]) // the chosen path
	p = must(Open(context.Background(), c, Options{}))(t)
	if n := len(must(p.latest())(t).VG.PVs); n != 2 {
		t.Errorf("with a named path the group has %d disks", n)
	}
	ok(t, p.Close())
	command(t, "vgremove", "-ff", "-y", "--devices", disks[0]+","+paths[1], c.VolumeGroup)
}
