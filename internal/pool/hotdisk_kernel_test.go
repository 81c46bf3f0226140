//go:build kernel

package pool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/hack/kernel/module"
)

// hotDisk is a SCSI disk that can be removed and attached again. While a process has its
// former device open, the disk comes back as another device.
type hotDisk struct {
	t    *testing.T
	host string
}

const scsiDebug = "/sys/bus/pseudo/drivers/scsi_debug"

func newHotDisk(t *testing.T) *hotDisk {
	t.Helper()
	if strings.HasPrefix(os.Getenv("DMSNAP_TEST_DISKS"), "/dev/loop") {
		t.Skip("this is no test kernel: the tests' lvm2 may not look at SCSI disks of a host")
	}
	var name unix.Utsname
	ok(t, unix.Uname(&name))
	dir := filepath.Join("/lib/modules", unix.ByteSliceToString(name.Release[:]))
	if _, err := os.Stat(scsiDebug); err != nil {
		tree := must(module.Open(dir))(t)
		files := must(tree.Order("sd_mod", "scsi_debug"))(t)
		for _, file := range files {
			options := ""
			if strings.HasPrefix(filepath.Base(file), "scsi_debug.") {
				options = "dev_size_mb=128"
			}
			f := must(os.Open(file))(t)
			if err := unix.FinitModule(int(f.Fd()), options, 0); err != nil && !errors.Is(err, unix.EEXIST) {
				t.Fatalf("loading %s: %v", file, err)
			}
			f.Close()
		}
	} else if hosts, err := os.ReadFile(scsiDebug + "/add_host"); err == nil && strings.TrimSpace(string(hosts)) == "0" {
		// The module is built in, and adds a host on request.
		ok(t, os.WriteFile(scsiDebug+"/fake_rw", []byte("0"), 0))
		ok(t, os.WriteFile(scsiDebug+"/add_host", []byte("1"), 0))
	}
	for _, h := range must(filepath.Glob("/sys/class/scsi_host/host*"))(t) {
		if kind, err := os.ReadFile(filepath.Join(h, "proc_name")); err == nil && strings.TrimSpace(string(kind)) == "scsi_debug" {
			d := &hotDisk{t, filepath.Base(h)}
			if d.device() == "" {
				d.attach()
			}
			d.wait()
			f := must(os.OpenFile(d.device(), os.O_RDWR, 0))(t)
			ok(t, zeroRange(f, 0, 128<<20))
			f.Close()
			return d
		}
	}
	t.Fatal("scsi_debug has no host")
	return nil
}

func (d *hotDisk) unit() string {
	return fmt.Sprintf("/sys/bus/scsi/devices/%s:0:0:0", strings.TrimPrefix(d.host, "host"))
}

// device returns the current path of the disk; "" if the disk is removed.
func (d *hotDisk) device() string {
	found, _ := filepath.Glob(d.unit() + "/block/*")
	if len(found) == 0 {
		return ""
	}
	return filepath.Join("/dev", filepath.Base(found[0]))
}

func (d *hotDisk) remove() {
	d.t.Helper()
	ok(d.t, os.WriteFile(d.unit()+"/delete", []byte("1"), 0))
}

func (d *hotDisk) attach() {
	d.t.Helper()
	ok(d.t, os.WriteFile(filepath.Join("/sys/class/scsi_host", d.host, "scan"), []byte("- - -"), 0))
	d.wait()
}

// wait waits until the disk can be opened, because its names appear earlier.
func (d *hotDisk) wait() {
	d.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if path := d.device(); path != "" {
			if f, err := os.Open(path); err == nil {
				f.Close()
				return
			}
		}
		if time.Now().After(end) {
			d.t.Fatal("the disk did not come back")
		}
	}
}
