//go:build kernel

package dm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestClient_lifeOfADevice: a device is created, loaded, resumed, suspended,
// renamed and removed, and Info follows.
func TestClient_lifeOfADevice(t *testing.T) {
	c := open(t)
	info, err := c.Create("t-a", "uuid-a")
	must(t, err)
	want := Info{Name: "t-a", UUID: "uuid-a", Device: info.Device}
	if info != want || info.Device.Major == 0 {
		t.Errorf("new device is %+v, not %+v", info, want)
	}
	table := parse(t, "0 2048 zero\n2048 1024 error")
	must(t, c.Load("t-a", table, false))
	loaded, err := c.LoadedTable("t-a")
	must(t, err)
	live, err := c.Table("t-a")
	must(t, err)
	if !loaded.Equal(table) || len(live) != 0 {
		t.Errorf("after load the inactive table is %q and the live one %q", loaded, live)
	}
	must(t, c.Resume("t-a", 0))
	loaded, err = c.LoadedTable("t-a")
	must(t, err)
	if loaded != nil {
		t.Errorf("after resume the inactive table is %q", loaded)
	}
	checkTable(t, c, "t-a", table.String())

	must(t, c.Load("t-a", parse(t, "0 8 zero"), false))
	must(t, c.Clear("t-a"))
	must(t, c.Suspend(t.Context(), "t-a", SuspendOptions{}))
	must(t, c.Suspend(t.Context(), "t-a", SuspendOptions{}))
	info, err = c.InfoByUUID("uuid-a")
	must(t, err)
	want.Targets, want.Suspended, want.Live = 2, true, true
	if info != want {
		t.Errorf("suspended device is %+v, not %+v", info, want)
	}
	must(t, c.Resume("t-a", 0))
	must(t, c.Rename("t-a", "t-b", 0))
	info, err = c.InfoByDevice(info.Device)
	must(t, err)
	want.Name, want.Suspended, want.EventNr = "t-b", false, info.EventNr
	if info != want {
		t.Errorf("renamed device is %+v, not %+v", info, want)
	}
	must(t, c.Remove("t-b", 0))
	if _, err := c.Info("t-b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("info of a removed device: %v", err)
	}
}

// TestSetUUID_onlyOnce: a device accepts one UUID and no second one.
func TestSetUUID_onlyOnce(t *testing.T) {
	c := open(t)
	mapped(t, c, "t-a", "0 8 zero")
	must(t, c.SetUUID("t-a", "later"))
	info, err := c.InfoByUUID("later")
	must(t, err)
	if info.Name != "t-a" {
		t.Errorf("the UUID belongs to %q", info.Name)
	}
	if err := c.SetUUID("t-a", "again"); !errors.Is(err, errUUIDSet) {
		t.Errorf("second UUID: %v", err)
	}
}

// TestRename_afterClear: a device that gets a name or a UUID after the drop of a table
// below its live table can be loaded and removed. Kernels from 5.15 to 7.1 with CONFIG_IMA
// free memory twice there, and stop, unless a table is loaded at that moment.
func TestRename_afterClear(t *testing.T) {
	c := open(t)
	dropped := func(name string) {
		mapped(t, c, name, "0 8 zero")
		must(t, c.Load(name, parse(t, "0 8 error"), false))
		must(t, c.Clear(name))
	}
	for range 10 {
		dropped("t-a")
		must(t, c.Rename("t-a", "t-b", 0))
		if info, err := c.Info("t-b"); err != nil || info.Loaded || info.Suspended {
			t.Errorf("renamed device is %+v, %v", info, err)
		}
		checkTable(t, c, "t-b", "0 8 zero")
		reload(t, c, "t-b", "0 16 zero")
		must(t, c.Remove("t-b", 0))

		dropped("t-a")
		must(t, c.SetUUID("t-a", "later"))
		reload(t, c, "t-a", "0 16 zero")
		must(t, c.Remove("t-a", 0))
	}
}

// TestRename_loadedTable: a loaded table stays loaded when its device gets a name that is
// free, and when another device has the name.
func TestRename_loadedTable(t *testing.T) {
	c := open(t)
	mapped(t, c, "t-a", "0 8 zero")
	mapped(t, c, "t-c", "0 8 zero")
	must(t, c.Load("t-a", parse(t, "0 16 zero"), false))
	if err := c.Rename("t-a", "t-c", 0); !errors.Is(err, ErrExists) {
		t.Errorf("rename to the name of another device: %v", err)
	}
	must(t, c.Rename("t-a", "t-b", 0))
	loaded, err := c.LoadedTable("t-b")
	must(t, err)
	if loaded.String() != "0 16 zero" {
		t.Errorf("the loaded table is %q", loaded)
	}
	if err := c.Rename("t-c", "t-b", 0); !errors.Is(err, ErrExists) {
		t.Errorf("rename to the name of another device: %v", err)
	}
	if info, err := c.Info("t-c"); err != nil || info.Loaded {
		t.Errorf("the device that was not renamed is %+v, %v", info, err)
	}
}

// TestLoad_readOnly: a device with a read-only table refuses writes.
func TestLoad_readOnly(t *testing.T) {
	c := open(t)
	info, err := c.Create("t-ro", "")
	must(t, err)
	must(t, c.Load("t-ro", parse(t, slice(disk(t, 0), 0, 1)), true))
	must(t, c.Resume("t-ro", UdevPrimarySource))
	if got, err := c.Info("t-ro"); err != nil || !got.ReadOnly {
		t.Errorf("device is %+v, %v", got, err)
	}
	path := node(t, c, "t-ro", info.Device)
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err == nil {
		_, err = unix.Write(fd, make([]byte, 512))
		unix.Close(fd)
	}
	if err == nil {
		t.Error("a write to a read-only device succeeded")
	}
}

// TestSuspend_freezesFileSystem: Suspend leaves a clean file system and blocks
// its writers; with SkipLockFS the file system is not clean.
func TestSuspend_freezesFileSystem(t *testing.T) {
	c := open(t)
	path := stacked(t, c)
	dir := mounted(t, path)
	below := node(t, c, "t-below", dev(t, c, "t-below"))
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600))
	must(t, c.Suspend(t.Context(), "t-top", SuspendOptions{SkipLockFS: true}))
	if !needsRecovery(t, below) {
		t.Error("the file system is clean without having been frozen")
	}
	must(t, c.Resume("t-top", 0))

	must(t, c.Suspend(t.Context(), "t-top", SuspendOptions{}))
	if needsRecovery(t, below) {
		t.Error("the frozen file system is not clean")
	}
	written := make(chan error, 1)
	go func() { written <- os.WriteFile(filepath.Join(dir, "late"), []byte("x"), 0o600) }()
	select {
	case err := <-written:
		t.Errorf("a write to the frozen file system ended: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	must(t, c.Resume("t-top", 0))
	must(t, <-written)
}

// TestResume_refusedTable: the kernel accepts a table at its load and refuses
// it at the resume; the device then runs with its previous table.
func TestResume_refusedTable(t *testing.T) {
	c := open(t)
	path := stacked(t, c)
	file := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, 64<<20))
	out, err := exec.Command("losetup", "-b", "4096", "--show", "-f", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v %s", err, out)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() { must(t, exec.Command("losetup", "-d", loop).Run()) })
	large, err := DeviceOf(loop)
	must(t, err)
	// The second segment does not begin at a block boundary of its disk.
	refused := parse(t, fmt.Sprintf("0 1 linear %v 0\n1 131064 linear %v 0", disk(t, 0), large))
	for _, suspended := range []bool{false, true} {
		must(t, c.Load("t-top", refused, false))
		if suspended {
			must(t, c.Suspend(t.Context(), "t-top", SuspendOptions{}))
		}
		if err := c.Resume("t-top", 0); err == nil {
			t.Fatal("the kernel accepted the table: this test shows nothing")
		} else if strings.Contains(err.Error(), "still suspended") {
			t.Error(err)
		}
		if info := checkRunning(t, c); info.Loaded {
			t.Error("the refused table is still loaded")
		}
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT, 0)
		must(t, err)
		_, err = unix.Pwrite(fd, aligned(t), 0)
		must(t, err)
		must(t, unix.Close(fd))
	}
	must(t, c.Remove("t-top", 0))
}
