//go:build kernel

package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// command runs a tool and returns its output.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// looped makes a loop device, as the kubelet does for a raw block volume.
func looped(t *testing.T, file string, options ...string) string {
	t.Helper()
	loop := command(t, "losetup", append(append([]string{"-f", "--show"}, options...), file)...)
	t.Cleanup(func() { exec.Command("losetup", "-d", loop).Run() })
	return loop
}

// TestOpen_tenantImitatesPool: a tenant's volume may have a volume group of the pool's
// name, or a copy of the pool's physical volume. Neither Open nor the operator's
// commands look at it, whatever block device of the node the volume becomes.
func TestOpen_tenantImitatesPool(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	config := p.config
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "tenant", Size: 128 * size.MiB, Mode: Block}))(t)
	volume := must(p.Activate(ctx, v.LV))(t)
	vg := must(p.latest())(t).VG
	id := vg.ID
	disk := vg.PVs[0].Device
	ok(t, p.Close())

	// A pattern that matches the blank volume does not make it a disk of the pool.
	t.Run("a blank volume", func(t *testing.T) {
		looped(t, volume)
		wide := config
		wide.Devices = append([]string{"/dev/loop*"}, config.Devices...)
		again := must(Open(ctx, wide, Options{}))(t)
		if n := len(must(again.latest())(t).VG.PVs); n != 1 {
			t.Errorf("the group has %d disks, want 1", n)
		}
		ok(t, again.Close())
	})
	config.Devices = append([]string{"/dev/loop*"}, config.Devices...)

	namesake := func(device string) {
		command(t, "pvcreate", "--devices", device, "-ff", "-y", device)
		command(t, "vgcreate", "--devices", device, config.VolumeGroup, device)
	}
	copied := func(device string) {
		command(t, "dd", "if="+disk, "of="+device, "bs=1M", "count=32", "oflag=direct")
	}
	for n, c := range []struct {
		name  string
		fill  func(device string)
		above func(t *testing.T) string
	}{
		{"the kubelet's loop device, a namesake", namesake, func(t *testing.T) string { return looped(t, volume) }},
		{"the kubelet's loop device, a copy", copied, func(t *testing.T) string { return looped(t, volume) }},
		{"dm above a loop device", namesake, func(t *testing.T) string {
			loop := looped(t, volume)
			t.Cleanup(func() { exec.Command("dmsetup", "remove", "--noudevsync", "stacked").Run() })
			command(t, "dmsetup", "create", "stacked", "--noudevsync", "--uuid", "CRYPT-LUKS2-stacked",
				"--table", "0 "+command(t, "blockdev", "--getsz", loop)+" linear "+loop+" 0")
			return "/dev/mapper/stacked"
		}},
		{"a partition", copied, func(t *testing.T) string {
			loop := looped(t, volume, "-P")
			// One DOS partition of 64 MiB at 1 MiB.
			mbr := make([]byte, 512)
			copy(mbr[446:], []byte{0, 0, 0, 0, 0x8e, 0, 0, 0, 0, 8, 0, 0, 0, 0, 2, 0})
			mbr[510], mbr[511] = 0x55, 0xaa
			ok(t, os.WriteFile(loop, mbr, 0))
			command(t, "blockdev", "--rereadpt", loop)
			return loop + "p1"
		}},
		{"a file on a file system", namesake, func(t *testing.T) string {
			command(t, "mkfs.ext4", "-q", "-F", volume)
			dir := t.TempDir()
			ok(t, unix.Mount(volume, dir, "ext4", 0, ""))
			t.Cleanup(func() { unix.Unmount(dir, 0) })
			file := filepath.Join(dir, "disk")
			command(t, "truncate", "-s", "64M", file)
			return looped(t, file)
		}},
		{"a file on a btrfs", copied, func(t *testing.T) string {
			command(t, "mkfs.btrfs", "-q", "-f", volume)
			dir := t.TempDir()
			ok(t, unix.Mount(volume, dir, "btrfs", 0, ""))
			t.Cleanup(func() { unix.Unmount(dir, 0) })
			file := filepath.Join(dir, "disk")
			command(t, "truncate", "-s", "64M", file)
			return looped(t, file)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ok(t, os.WriteFile(volume, make([]byte, size.MiB), 0))
			device := c.above(t)
			c.fill(device)
			if dev := must(dm.DeviceOf(device))(t); filepath.Dir(device) == "/dev/mapper" {
				device = fmt.Sprintf("/dev/dm-%d", dev.Minor)
			}
			for _, chosen := range []Config{config, {Name: config.Name, VolumeGroup: config.VolumeGroup, FirstStore: config.FirstStore}} {
				opening, cancel := context.WithTimeout(ctx, 20*time.Second)
				defer cancel()
				again, err := Open(opening, chosen, Options{})
				if err != nil {
					t.Fatalf("devices %v: %v", chosen.Devices, err)
				}
				if got := must(again.latest())(t).VG; got.ID != id || len(got.PVs) != 1 || got.PVs[0].Device != disk {
					t.Errorf("devices %v: opened %v on %s", chosen.Devices, got.ID, got.PVs[0].Device)
				}
				if len(chosen.Devices) > 0 {
					reported(t, again, device)
				}
				ok(t, again.Close())
				seen := must(Inspect(ctx, chosen, Options{}))(t)
				if len(seen.Disks) != 1 || seen.Disks[0].Device != disk {
					t.Errorf("devices %v: Inspect shows the disks %v", chosen.Devices, seen.Disks)
				}
			}
			if n > 0 { // Verify checks again after a second
				return
			}
			checked := must(Verify(ctx, config, Options{}))(t)
			if !slices.ContainsFunc(checked.Findings, func(f Finding) bool {
				return f.Reason == "DuplicateDisk" && strings.Contains(f.What, device+" on a logical volume")
			}) {
				t.Errorf("Verify found %v", checked.Findings)
			}
		})
	}
}

// reported waits until the pool's health names the device.
func reported(t *testing.T, p *Pool, device string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		health := p.PoolHealth(context.Background())
		if slices.ContainsFunc(health, func(c Condition) bool {
			return c.Reason == "DuplicateDisk" && strings.Contains(c.Message, "device "+device+" ")
		}) {
			return
		}
		if time.Now().After(end) {
			t.Errorf("the pool's health does not name %s: %v", device, health)
			return
		}
	}
}

// foreignGroup makes a volume group with one logical volume on a disk that is not the
// pool's. It returns the group's id.
func foreignGroup(t *testing.T, name, disk string) lvm2.ID {
	t.Helper()
	command(t, "vgcreate", "--devices", disk, name, disk)
	command(t, "lvcreate", "--devices", disk, "-y", "-L", "16m", "-n", "bait", name)
	command(t, "vgchange", "--devices", disk, "-an", name)
	return must(lvm2.ParseID(command(t, "vgs", "--devices", disk, "--noheadings", "-o", "vg_uuid", name)))(t)
}

// TestOpen_otherGroupOfSameName: another disk may have a volume group of the pool's
// name. The configuration's devices or ids say which group is the pool's. The driver
// neither uses the other group nor fails because of it.
func TestOpen_otherGroupOfSameName(t *testing.T) {
	ctx := context.Background()
	disks := testDisks(t)
	const name = "vgnamesake"
	foreign := foreignGroup(t, name, disks[1])
	config := Config{Name: "pool", VolumeGroup: name, Devices: disks[:1], Create: true}
	p := openPool(t, config)
	own := must(p.latest())(t).VG
	if own.ID == foreign || len(own.PVs) != 1 || own.PVs[0].Device != disks[0] {
		t.Fatalf("the pool is %v on %s", own.ID, own.PVs[0].Device)
	}
	reported(t, p, disks[1])
	must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 8 * size.MiB, Mode: Block}))(t)
	ok(t, p.Close())
	for _, c := range []struct {
		what    string
		devices []string
		ids     []lvm2.ID
		want    lvm2.ID
		err     string
	}{
		{what: "nothing", err: "duplicate volume group name"},
		{what: "the id", ids: []lvm2.ID{lvm2.NewID(), own.ID}, want: own.ID},
		{what: "the other's id", ids: []lvm2.ID{foreign}, want: foreign},
		{what: "an unknown id", ids: []lvm2.ID{lvm2.NewID()}, err: "no volume group vgnamesake with an id of volumeGroupIDs"},
		{what: "the other's device", devices: disks[1:2], want: foreign},
		{what: "a device without a group", devices: disks[2:], err: "no volume group vgnamesake on the configured devices"},
	} {
		opening, cancel := context.WithTimeout(ctx, 20*time.Second)
		p, err := Open(opening, Config{Name: "pool", VolumeGroup: name, Devices: c.devices, VolumeGroupIDs: c.ids}, Options{})
		cancel()
		if err != nil {
			if c.err == "" || !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), c.err) {
				t.Errorf("configured with %s, Open returned %v", c.what, err)
			}
			continue
		}
		if got := must(p.latest())(t).VG.ID; got != c.want {
			t.Errorf("configured with %s, Open used group %v", c.what, got)
		}
		ok(t, p.Close())
	}
	// The driver never creates a second group of the same name.
	_, err := Open(ctx, Config{Name: "pool", VolumeGroup: name, Devices: disks[2:], Create: true}, Options{})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), disks[0]) {
		t.Errorf("configured with a blank device beside the pool's, Open returned %v", err)
	}
	// If lvm2 has a devices file, the pool is the group on the listed disk.
	file := filepath.Join(t.TempDir(), "system.devices")
	ok(t, os.WriteFile(file, fmt.Appendf(nil, "VERSION=1.1.3\nIDTYPE=devname IDNAME=%s DEVNAME=%[1]s PVID=%s\n", disks[0], string(own.PVs[0].ID)), 0o600))
	p = must(Open(ctx, Config{Name: "pool", VolumeGroup: name}, Options{LVM: lvm2.Host{DevicesFile: file}}))(t)
	if got := must(p.latest())(t).VG.ID; got != own.ID {
		t.Errorf("the devices file lists group %v, but Open used %v", own.ID, got)
	}
	ok(t, p.Close())
	// vgremove needs the disk, because both groups have the name.
	for _, d := range disks[:2] {
		command(t, "vgremove", "--devices", d, "-ff", "-y", name)
	}
}
