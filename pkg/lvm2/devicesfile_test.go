//go:build !kernel

package lvm2

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCreateVG_devicesFile: CreateVG enters its devices into an existing
// devices file, and creates none.
func TestCreateVG_devicesFile(t *testing.T) {
	h := testHost(t)
	h.DevicesFile = filepath.Join(t.TempDir(), "system.devices")
	disks := blankDisks(t, 3, diskSize)
	createVG(t, h, disks[:1], CreateOptions{})
	if _, err := os.Stat(h.DevicesFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a devices file was created: lvm2 would not use other devices any more (%v)", err)
	}
	others := "IDTYPE=sys_wwid IDNAME=x DEVNAME=" + disks[1] + " PVID=old PART=1\nIDTYPE=devname IDNAME=/dev/sdz DEVNAME=/dev/sdz PVID=other\n"
	text := "# LVM uses devices listed in this file.\nVERSION=1.1.7\nIDTYPE=devname IDNAME=" + disks[1] + " DEVNAME=" + disks[1] + " PVID=old\n" + others
	if err := os.WriteFile(h.DevicesFile, []byte(strings.TrimSuffix(text, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := CreateVG(context.Background(), h, "two", disks[1:], CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	found, err := Scan(context.Background(), disks)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(h.DevicesFile)
	want := "# LVM uses devices listed in this file.\nVERSION=1.1.8\n" + others
	for i, d := range disks[1:] {
		want += "IDTYPE=devname IDNAME=" + d + " DEVNAME=" + d + " PVID=" + string(found[i+1].PV) + "\n"
	}
	if err != nil || string(got) != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, want)
	}
	for i, want := range []bool{false, true, true} {
		if got, err := h.Entered(disks[i], found[i].PV); got != want || err != nil {
			t.Errorf("disk %d is entered: %v, %v", i, got, err)
		}
	}
	if _, err := appendDevices("VERSION=2.0.0\n", nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a newer version: %v", err)
	}
}

// TestDevicesFile_configuration: DevicesFile follows lvm.conf and
// lvmlocal.conf.
func TestDevicesFile_configuration(t *testing.T) {
	for _, c := range []struct{ main, local, want string }{
		{"", "", "system.devices"},
		{"devices {\n\t# use_devicesfile = 0\n}", "", "system.devices"},
		{"devices {\n\tuse_devicesfile = 0\n}", "", ""},
		{"devices {\n\tuse_devicesfile=1\n\tdevicesfile = \"mine.devices\"\n}", "", "mine.devices"},
		{"devices/use_devicesfile=1", "devices { \n use_devicesfile = 0\n}", ""},
	} {
		dir := t.TempDir()
		for name, text := range map[string]string{"lvm.conf": c.main, "lvmlocal.conf": c.local} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want := c.want
		if want != "" {
			want = filepath.Join(dir, "devices", want)
		}
		if got := DevicesFile(dir); got != want {
			t.Errorf("%q and %q: %q, want %q", c.main, c.local, got, want)
		}
	}
}
