package lvm2

import (
	"os"
	"path/filepath"
	"testing"
)

// TestDeviceID_kinds: devices have lvm2's ids by their files in sysfs. Entries
// of an older lvm2 match the same device, and an older lvm2 understands new
// entries.
func TestDeviceID_kinds(t *testing.T) {
	type files map[string]string
	for _, c := range []struct {
		what, node  string
		disk        files
		part        files // of the partition, if it is one
		modern, old deviceID
		also        []deviceID // other ids under which lvm2 may have entered the device
	}{
		{"SCSI", "/dev/sda", files{"device/wwid": "naa.5000c500\n"}, nil, deviceID{idWWID, "naa.5000c500", 0}, deviceID{idWWID, "naa.5000c500", 0}, nil},
		{"NVMe", "/dev/nvme0n1", files{"wwid": "eui.0025385b\n", "device/serial": "S4EW  \n"}, nil, deviceID{idWWID, "eui.0025385b", 0}, deviceID{idWWID, "eui.0025385b", 0}, nil},
		{"a partition", "/dev/nvme0n1p2", files{"wwid": "eui.0025385b\n"}, files{"partition": "2\n"}, deviceID{idWWID, "eui.0025385b", 2}, deviceID{idWWID, "eui.0025385b", 2}, nil},
		{"T10 with blanks", "/dev/sda", files{"device/wwid": "t10.ATA     DISK   1234  \n"}, nil, deviceID{idWWID, "t10.ATA_DISK_1234", 0}, deviceID{idName, "/dev/sda", 0},
			[]deviceID{{idWWID, "t10.ATA_____DISK___1234__", 0}, {idWWID, "t10.ATA_DISK_1234", 0}}},
		{"QEMU", "/dev/sda", files{"device/wwid": "naa.QEMU_1\n"}, nil, deviceID{idWWID, "naa.QEMU_1", 0}, deviceID{idName, "/dev/sda", 0}, nil},
		{"virtio", "/dev/vda", files{"serial": "abc\n"}, nil, deviceID{idSerial, "abc", 0}, deviceID{idName, "/dev/vda", 0}, nil},
		{"a serial number", "/dev/sda", files{"device/serial": "abc\n"}, nil, deviceID{idSerial, "abc", 0}, deviceID{idSerial, "abc", 0}, nil},
		{"a serial number of VPD", "/dev/sda", files{"device/vpd_pg80": "\x00\x80\x00\x04ab c"}, nil, deviceID{idSerial, "ab_c", 0}, deviceID{idName, "/dev/sda", 0}, nil},
		{"LUKS", "/dev/mapper/x", files{"dm/uuid": "CRYPT-LUKS2-1-x\n"}, nil, deviceID{idCrypt, "CRYPT-LUKS2-1-x", 0}, deviceID{idCrypt, "CRYPT-LUKS2-1-x", 0}, nil},
		{"multipath", "/dev/mapper/mpatha", files{"dm/uuid": "mpath-3600\n"}, nil, deviceID{idMpath, "mpath-3600", 0}, deviceID{idMpath, "mpath-3600", 0}, nil},
		{"a partition of multipath", "/dev/mapper/mpatha1", files{"dm/uuid": "part1-mpath-3600\n"}, nil, deviceID{idMpath, "part1-mpath-3600", 0}, deviceID{idMpath, "part1-mpath-3600", 0}, nil},
		{"RAID", "/dev/md0", files{"md/uuid": "1:2:3:4\n"}, nil, deviceID{idMD, "1:2:3:4", 0}, deviceID{idMD, "1:2:3:4", 0}, nil},
		{"a loop device", "/dev/loop0", files{"dev": "7:0\n", "loop/backing_file": "/var/my pool\n"}, nil, deviceID{idLoop, "/var/my_pool", 0}, deviceID{idLoop, "/var/my_pool", 0}, nil},
		{"a loop device without a file", "/dev/loop0", files{"dev": "7:0\n", "loop/backing_file": "/x (deleted)\n"}, nil, deviceID{idName, "/dev/loop0", 0}, deviceID{idName, "/dev/loop0", 0}, nil},
		{"nothing", "/dev/ubda", files{}, nil, deviceID{idName, "/dev/ubda", 0}, deviceID{idName, "/dev/ubda", 0}, nil},
	} {
		make := func(all files) string {
			dir := t.TempDir()
			for name, text := range all {
				path := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			return dir
		}
		d := &idDevice{node: c.node, real: c.node, dirs: []string{make(c.disk)}}
		if c.part != nil {
			d.part, d.dirs = c.modern.part, []string{make(c.part), d.dirs[0]}
		}
		if got := d.preferred(true); got != c.modern {
			t.Errorf("%s: %v, want %v", c.what, got, c.modern)
		}
		if got := d.preferred(false); got != c.old {
			t.Errorf("%s, for an older lvm2: %v, want %v", c.what, got, c.old)
		}
		for _, e := range append(c.also, c.modern, c.old) {
			other := e
			other.part++
			if !d.is(e) || d.is(other) || d.is(deviceID{e.kind, e.name + "x", e.part}) {
				t.Errorf("%s: is %v: %v", c.what, e, d.is(e))
			}
		}
	}
}
