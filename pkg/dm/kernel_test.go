//go:build kernel

package dm

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The tests of this package that need a kernel share its devices, so none of
// them is parallel. Device names begin with "t-".

// open opens a client. What the test leaves behind is removed at its end.
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

// removeAll removes the devices of a test, users before what they use.
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
			// A suspended device would keep its users from ending.
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
	t.Error("devices of the test are still there")
}

// disk is the number of a scratch disk.
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

// must ends the test at an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mapped makes a running device of the table.
func mapped(t *testing.T, c *Client, name, table string) Device {
	t.Helper()
	info, err := c.Create(name, "")
	must(t, err)
	reload(t, c, name, table)
	return info.Device
}

// reload gives a device another table.
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

// node is the path of a device's node.
func node(t *testing.T, c *Client, name string, d Device) string {
	t.Helper()
	path, err := c.EnsureNode(t.Context(), name, d)
	must(t, err)
	return path
}

// slice is a table line for a part of a scratch disk, in MiB.
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
