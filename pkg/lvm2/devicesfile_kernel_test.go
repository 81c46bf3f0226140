//go:build kernel

package lvm2

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// withDevicesFile is the configuration with which lvm2's commands use the devices
// file.
const withDevicesFile = "devices { use_devicesfile=1 scan_lvs=1 }"

// hostWithDevicesFile returns the host with an empty devices file.
func hostWithDevicesFile(t *testing.T) Host {
	t.Helper()
	h := kernelHost
	h.DevicesFile = "/etc/lvm/devices/system.devices"
	if _, err := os.Stat(h.DevicesFile); err == nil {
		t.Skip("lvm2 uses a devices file on this machine: the test would change it")
	}
	empty(t, h)
	t.Cleanup(func() {
		os.RemoveAll(filepath.Dir(h.DevicesFile))
		removeDevicesLock(h)
	})
	return h
}

// removeDevicesLock removes the lock file of the devices file, which lvm2 leaves.
func removeDevicesLock(h Host) {
	os.Remove(filepath.Join(h.lockDir(), devicesLockPrefix+filepath.Base(h.DevicesFile)))
}

func empty(t *testing.T, h Host) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(h.DevicesFile), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.DevicesFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// entriesOf returns the entries of the devices file by the name of the device,
// without the ids of physical volumes.
func entriesOf(t *testing.T, h Host) map[string]string {
	t.Helper()
	text, err := os.ReadFile(h.DevicesFile)
	if err != nil {
		t.Fatal(err)
	}
	entries := map[string]string{}
	for line := range strings.Lines(string(text)) {
		fields := slices.DeleteFunc(strings.Fields(line), func(f string) bool { return strings.HasPrefix(f, "PVID=") })
		for _, f := range fields {
			if name, is := strings.CutPrefix(f, "DEVNAME="); is {
				entries[name] = strings.Join(fields, " ")
			}
		}
	}
	return entries
}

// TestDevicesFile_asLVM2: with a devices file, lvm2 finds the devices of
// CreateVG and Extend, and the entries equal those of lvm2's commands.
func TestDevicesFile_asLVM2(t *testing.T) {
	h := hostWithDevicesFile(t)
	scratched := scratch(t, 1)
	partitioned := loopDisk(t, "-P")
	mbr := make([]byte, 512)
	copy(mbr[446:], []byte{0, 0, 0, 0, 0x8e, 0, 0, 0, 0, 8, 0, 0, 0, 0xe0, 1, 0}) // 60 MiB at 1 MiB
	mbr[510], mbr[511] = 0x55, 0xaa
	if err := os.WriteFile(partitioned, mbr, 0); err != nil {
		t.Fatal(err)
	}
	command(t, "blockdev", "--rereadpt", partitioned)
	mapped := func(name, uuid string) string {
		under := loopDisk(t)
		command(t, "dmsetup", "create", name, "--noudevsync", "--uuid", uuid, "--table", "0 131072 linear "+under+" 0")
		t.Cleanup(func() { exec.Command("dmsetup", "remove", "--noudevsync", name).Run() })
		return "/dev/mapper/" + name
	}
	devices := []string{scsiDisk(t), scratched[0], loopDisk(t), partitioned + "p1", mapped("crypted", "CRYPT-LUKS2-0123-crypted"), mapped("mpatha", "mpath-3600a")}
	for _, d := range devices {
		command(t, "pvcreate", "-qq", "--config", withDevicesFile, d)
	}
	want := entriesOf(t, h)
	for _, d := range devices {
		command(t, "dd", "if=/dev/zero", "of="+d, "bs=1M", "count=4", "oflag=direct")
	}
	empty(t, h)
	ctx := context.Background()
	if err := CreateVG(ctx, h, "vg", devices[:2], CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s, err := OpenVG(ctx, h, "vg", devices)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.Extend(ctx, devices[2:]); err != nil {
		t.Fatal(err)
	}
	got := entriesOf(t, h)
	for _, d := range devices {
		if got[d] != want[d] || got[d] == "" {
			t.Errorf("the entry of %s is %q, lvm2's is %q", d, got[d], want[d])
		}
	}
	vg := read(t, s)
	rows := fields(t, "pvs", "--config", withDevicesFile, "-o", "vg_name,pv_name,pv_uuid")
	for _, pv := range vg.PVs {
		if !slices.ContainsFunc(rows, func(row []string) bool { return row[0] == "vg" && row[2] == pv.ID.String() }) {
			t.Errorf("lvm2 does not see %s: %v", pv.Device, rows)
		}
		if in, err := h.Entered(pv.Device, pv.ID); !in || err != nil {
			t.Errorf("%s is entered: %v, %v", pv.Device, in, err)
		}
	}
	// A device that lvmdevices deletes is not entered any more.
	command(t, "lvm", "lvmdevices", "--config", withDevicesFile, "--deldev", devices[0])
	if in, err := h.Entered(vg.PVs[0].Device, vg.PVs[0].ID); in || err != nil {
		t.Errorf("%s, which was deleted, is entered: %v, %v", vg.PVs[0].Device, in, err)
	}
	command(t, "lvm", "lvmdevices", "--config", withDevicesFile, "--adddev", devices[0])
	if in, err := h.Entered(vg.PVs[0].Device, vg.PVs[0].ID); !in || err != nil {
		t.Errorf("%s, which was added by lvm2, is entered: %v, %v", vg.PVs[0].Device, in, err)
	}
	command(t, "vgremove", "-ff", "-y", "--config", withDevicesFile, "vg")
}

// lvm2Sees returns the devices that lvm2 uses as physical volumes.
func lvm2Sees(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("pvs", "--config", withDevicesFile, "--noheadings", "-o", "pv_name").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

// TestEntered_otherPhysicalVolume: an entry by name with the id of another
// physical volume does not list the device; an entry by a persistent id does,
// because lvm2 corrects it.
func TestEntered_otherPhysicalVolume(t *testing.T) {
	h := hostWithDevicesFile(t)
	named, looped := scratch(t, 1)[0], loopDisk(t)
	if err := CreateVG(context.Background(), h, "vg", []string{named, looped}, CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(h.DevicesFile)
	if err != nil {
		t.Fatal(err)
	}
	pvs := map[string]ID{}
	found, err := Scan(context.Background(), []string{named, looped})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range found {
		pvs[d.Path] = d.PV
	}
	for _, c := range []struct{ device, entered string }{
		{named, strings.Repeat("a", idLength)},
		{looped, strings.Repeat("a", idLength)},
		{named, "."},
	} {
		if err := os.WriteFile(h.DevicesFile, []byte(strings.ReplaceAll(string(text), "PVID="+string(pvs[c.device]), "PVID="+c.entered)), 0o600); err != nil {
			t.Fatal(err)
		}
		in, err := h.Entered(c.device, pvs[c.device])
		if err != nil {
			t.Fatal(err)
		}
		sees := slices.Contains(lvm2Sees(t), c.device)
		if in != sees {
			t.Errorf("%s with the entry of %q: entered is %v, lvm2 sees it is %v", c.device, c.entered, in, sees)
		}
		if in {
			continue
		}
		command(t, "lvm", "lvmdevices", "--config", withDevicesFile, "--adddev", c.device)
		if in, err := h.Entered(c.device, pvs[c.device]); !in || err != nil || !slices.Contains(lvm2Sees(t), c.device) {
			t.Errorf("%s was added by lvm2: entered is %v, %v", c.device, in, err)
		}
	}
	if err := os.WriteFile(h.DevicesFile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, "vgremove", "-ff", "-y", "--config", withDevicesFile, "vg")
}

// TestDevicesFile_onlyListed: with a devices file, lvm2 uses the devices of
// CreateVG.
func TestDevicesFile_onlyListed(t *testing.T) {
	disks := scratch(t, 2)
	const path = "/etc/lvm/devices/system.devices"
	use := []string{"--config", "devices/use_devicesfile=1"}
	// lvmdevices creates the devices file.
	lvm(t, append([]string{"lvm", "lvmdevices", "--adddev", disks[0]}, use...)...)
	h := kernelHost
	h.DevicesFile = path
	t.Cleanup(func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
		removeDevicesLock(h)
	})
	if err := CreateVG(context.Background(), h, "vg", disks[1:], CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if out := lvm(t, append([]string{"vgck", "vg"}, use...)...); out != "" {
		t.Error(out)
	}
	if out := lvm(t, append([]string{"lvm", "lvmdevices", "--check"}, use...)...); strings.Contains(out, "needed") {
		t.Errorf("lvmdevices --check: %s", out)
	}
	lvm(t, append([]string{"vgremove", "-y", "vg"}, use...)...)
}
