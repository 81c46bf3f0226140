//go:build kernel

package dm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The kernel tests of this package share the kernel's devices, so none of them is
// parallel. Device names begin with "t-".

// open opens a client. At the end of the test it removes the test's devices.
func open(t *testing.T) *Client {
	t.Helper()
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		removeAll(t, c)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// removeAll removes the devices of a test, in several passes: a device that
// another device uses can only be removed after it.
func removeAll(t *testing.T, c *Client) {
	for range 10 {
		entries, err := c.List()
		if err != nil {
			t.Error(err)
		}
		left := 0
		for _, e := range entries {
			if !strings.HasPrefix(e.Name, "t-") {
				continue
			}
			// I/O to a suspended device would never end.
			_ = c.Clear(e.Name)
			_ = c.Resume(e.Name, 0)
			if c.Remove(e.Name, 0) != nil {
				left++
			} else if err := c.RemoveNode(e.Name); err != nil {
				t.Error(err)
			}
		}
		if left == 0 {
			return
		}
	}
	t.Error("some devices of the test could not be removed")
}

// disk returns the number of scratch disk i.
func disk(t *testing.T, i int) Device {
	t.Helper()
	d, err := DeviceOf(diskPath(t, i))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func diskPath(t *testing.T, i int) string {
	t.Helper()
	disks := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")
	if i >= len(disks) || disks[i] == "" {
		t.Fatalf("the test needs %d scratch disks in DMSNAP_TEST_DISKS", i+1)
	}
	return disks[i]
}

// must ends the test if err is not nil.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mapped creates a running device with the table.
func mapped(t *testing.T, c *Client, name, table string) Device {
	t.Helper()
	info, err := c.Create(name, "")
	must(t, err)
	reload(t, c, name, table)
	return info.Device
}

// reload replaces the device's live table.
func reload(t *testing.T, c *Client, name, table string) {
	t.Helper()
	must(t, c.Load(name, parse(t, table), false))
	must(t, c.Resume(name, UdevPrimarySource))
}

func parse(t *testing.T, text string) Table {
	t.Helper()
	table, err := ParseTable(text)
	must(t, err)
	return table
}

// node returns the path of a device's node.
func node(t *testing.T, c *Client, name string, d Device) string {
	t.Helper()
	path, err := c.EnsureNode(t.Context(), name, d)
	must(t, err)
	return path
}

// dev returns the number of a device.
func dev(t *testing.T, c *Client, name string) Device {
	t.Helper()
	info, err := c.Info(name)
	must(t, err)
	return info.Device
}

// slice returns a table line for a part of disk d. at and length are in MiB.
func slice(d Device, at, length size.Bytes) string {
	return fmt.Sprintf("0 %d linear %v %d", (length * size.MiB).Sectors(), d, (at * size.MiB).Sectors())
}

func checkTable(t *testing.T, c *Client, name, want string) {
	t.Helper()
	got, err := c.Table(name)
	must(t, err)
	if got.String() != want {
		t.Errorf("table of %s is\n%v\nnot\n%s", name, got, want)
	}
}

// status returns the status of a device with one segment.
func status(t *testing.T, c *Client, name string) Status {
	t.Helper()
	all, err := c.Status(name)
	must(t, err)
	if len(all) != 1 {
		t.Fatalf("status of %s has %d segments", name, len(all))
	}
	return all[0].Status
}

func checkStatus(t *testing.T, c *Client, name, want string) {
	t.Helper()
	if got := status(t, c, name); got.String() != want {
		t.Errorf("status of %s is %q, not %q", name, got, want)
	}
}

// write writes n bytes of value v to a device and flushes them to the disk.
func write(path string, at, n size.Bytes, v byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(bytes.Repeat([]byte{v}, int(n)), int64(at))
	return errors.Join(err, f.Sync(), f.Close())
}

// read returns the byte at offset at, read past the page cache.
func read(t *testing.T, path string, at size.Bytes) byte {
	t.Helper()
	b := aligned(t)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT, 0)
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.Pread(fd, b, int64(at))
	must(t, err)
	return b[0]
}

// aligned returns a page of memory that O_DIRECT accepts.
func aligned(t *testing.T) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(t, err)
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}

// eventually waits up to 20 s until done returns true.
func eventually(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the condition does not hold after 20 s")
		}
	}
}
