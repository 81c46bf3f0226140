//go:build kernel

package dm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestVersions(t *testing.T) {
	c := open(t)
	v, err := c.Version()
	must(t, err)
	if v.Major != 4 || v.Minor == 0 {
		t.Errorf("ioctl version is %v", v)
	}
	versions := map[string]Version{}
	for _, name := range []string{"linear", "striped", "snapshot", "snapshot-origin", "snapshot-merge", "mirror", "zero", "error"} {
		versions[name], err = c.TargetVersion(name)
		must(t, err)
	}
	targets, err := c.Targets()
	must(t, err)
	for name, v := range versions {
		if targets[name] != v || v.Major == 0 {
			t.Errorf("version of %s is %v and in the list %v", name, v, targets[name])
		}
	}
	if _, err := c.TargetVersion("nonsense"); !errors.Is(err, ErrNotFound) {
		t.Errorf("version of a target that does not exist: %v", err)
	}
}

func TestLife(t *testing.T) {
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

func TestSetUUID(t *testing.T) {
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

func TestErrors(t *testing.T) {
	c := open(t)
	d := mapped(t, c, "t-a", "0 2048 zero")
	mapped(t, c, "t-user", fmt.Sprintf("0 2048 linear %v 0", d))
	_, created := c.Create("t-a", "")
	_, noInfo := c.Info("t-none")
	_, noUUID := c.InfoByUUID("none")
	_, noDevice := c.InfoByDevice(Device{240, 1234})
	_, noTable := c.Table("t-none")
	_, noStatus := c.Status("t-none")
	_, noDeps := c.Deps("t-none")
	_, noMessage := c.Message("t-none", 0, "@stats_list")
	for i, f := range []struct {
		err, want error
		errno     unix.Errno
	}{
		{c.Remove("t-a", 0), ErrBusy, unix.EBUSY},
		{created, ErrExists, unix.EBUSY},
		{c.Rename("t-a", "t-user", 0), ErrExists, unix.EBUSY},
		{c.Rename("t-none", "t-new", 0), ErrNotFound, unix.ENXIO},
		{c.Remove("t-none", 0), ErrNotFound, unix.ENXIO},
		{c.Resume("t-none", 0), ErrNotFound, unix.ENXIO},
		{c.Suspend(t.Context(), "t-none", SuspendOptions{}), ErrNotFound, unix.ENXIO},
		{c.Clear("t-none"), ErrNotFound, unix.ENXIO},
		{c.SetUUID("t-none", "u"), ErrNotFound, unix.ENXIO},
		{noInfo, ErrNotFound, unix.ENXIO},
		{noUUID, ErrNotFound, unix.ENXIO},
		{noDevice, ErrNotFound, unix.ENXIO},
		{noTable, ErrNotFound, unix.ENXIO},
		{noStatus, ErrNotFound, unix.ENXIO},
		{noDeps, ErrNotFound, unix.ENXIO},
		{noMessage, ErrNotFound, unix.ENXIO},
		{c.Load("t-none", parse(t, "0 8 zero"), false), errTable, unix.ENXIO},
		{c.Load("t-a", parse(t, "0 8 nonsense"), false), errTable, unix.EINVAL},
		{c.Load("t-a", parse(t, "0 8 linear 240:1234 0"), false), errTable, unix.ENXIO},
	} {
		var e *Error
		if !errors.As(f.err, &e) || !errors.Is(f.err, f.want) || !errors.Is(f.err, f.errno) {
			t.Errorf("case %d: error %v is not %v with %v", i, f.err, f.want, f.errno)
		}
	}
	if info, err := c.Info("t-a"); err != nil || info.DeferredRemove || info.Loaded {
		t.Errorf("the failures have changed the device: %+v, %v", info, err)
	}
}

func TestReadOnlyTable(t *testing.T) {
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
		t.Error("a read-only device was written to")
	}
}

func TestDeps(t *testing.T) {
	c := open(t)
	a, b := mapped(t, c, "t-a", "0 8 zero"), mapped(t, c, "t-b", "0 8 zero")
	mapped(t, c, "t-user", fmt.Sprintf("0 4 linear %v 0\n4 4 linear %v 0\n8 4 linear %v 4", a, b, a))
	deps, err := c.Deps("t-user")
	must(t, err)
	if len(deps) != 2 || deps[0] == deps[1] || deps[0] != a && deps[0] != b || deps[1] != a && deps[1] != b {
		t.Errorf("the table uses %v, not %v and %v", deps, a, b)
	}
	deps, err = c.Deps("t-a")
	must(t, err)
	if len(deps) != 0 {
		t.Errorf("a device of zeroes uses %v", deps)
	}
}

func TestMessage(t *testing.T) {
	c := open(t)
	mapped(t, c, "t-a", "0 2048 zero")
	id, err := c.Message("t-a", 0, "@stats_create - /1 p aux")
	must(t, err)
	list, err := c.Message("t-a", 0, "@stats_list")
	must(t, err)
	if id != "0" || strings.TrimSpace(list) != "0: 0+2048 2048 p aux" {
		t.Errorf("region %q is listed as %q", id, list)
	}
	if answer, err := c.Message("t-a", 0, "@stats_delete 0"); err != nil || answer != "" {
		t.Errorf("deletion answered %q, %v", answer, err)
	}
	if _, err := c.Message("t-a", 0, "nonsense"); !errors.Is(err, unix.EINVAL) || !errors.Is(err, errMessage) {
		t.Errorf("a message to a target that takes none: %v", err)
	}
}

// More devices, and a longer table, than the first buffer has room for.
func TestManyDevices(t *testing.T) {
	c := open(t)
	const n = 300
	want := map[string]ListEntry{}
	for i := range n {
		uuid := fmt.Sprintf("uuid-%0120d", i)
		if i%7 == 0 {
			uuid = ""
		}
		info, err := c.Create(fmt.Sprintf("t-many-%d", i), uuid)
		must(t, err)
		want[info.Name] = ListEntry{Name: info.Name, UUID: uuid, Device: info.Device}
	}
	entries, err := c.List()
	must(t, err)
	found := 0
	for _, e := range entries {
		if strings.HasPrefix(e.Name, "t-many-") {
			found++
			if e != want[e.Name] {
				t.Errorf("listed as %+v, not %+v", e, want[e.Name])
			}
		}
	}
	if found != n {
		t.Errorf("%d of %d devices are listed", found, n)
	}
}

// TestListFollows: whatever changes the devices, also by others, the next list tells it.
// While nothing does the kernel is not asked again.
func TestListFollows(t *testing.T) {
	c, other := open(t), open(t)
	ours := func() map[string]ListEntry {
		t.Helper()
		entries, err := c.List()
		must(t, err)
		again, err := c.List()
		must(t, err)
		if len(entries) > 0 && &entries[0] != &again[0] {
			t.Error("nothing happened, and the kernel was asked again")
		}
		out := map[string]ListEntry{}
		for _, e := range entries {
			if strings.HasPrefix(e.Name, "t-follow") {
				out[e.Name] = e
			}
		}
		return out
	}
	is := func(what string, want ...string) {
		t.Helper()
		names := slices.Sorted(maps.Keys(ours()))
		if !slices.Equal(names, want) {
			t.Errorf("%s: listed are %v, not %v", what, names, want)
		}
	}
	is("before")
	_, err := other.Create("t-follow-a", "")
	must(t, err)
	is("created", "t-follow-a")
	must(t, other.SetUUID("t-follow-a", "uuid-a"))
	if e := ours()["t-follow-a"]; e.UUID != "uuid-a" {
		t.Errorf("its UUID is listed as %q", e.UUID)
	}
	must(t, other.Rename("t-follow-a", "t-follow-b", 0))
	is("renamed", "t-follow-b")
	must(t, other.Load("t-follow-b", parse(t, "0 2048 zero"), false))
	must(t, other.Resume("t-follow-b", 0))
	info, err := other.Info("t-follow-b")
	must(t, err)
	node, err := other.EnsureNode(context.Background(), "t-follow-b", info.Device)
	must(t, err)
	f, err := os.Open(node)
	must(t, err)
	if out, err := exec.Command("dmsetup", "--noudevsync", "remove", "--deferred", "t-follow-b").CombinedOutput(); err != nil {
		t.Fatalf("dmsetup: %v %s", err, out)
	}
	is("to be removed", "t-follow-b")
	must(t, f.Close())
	for end := time.Now().Add(10 * time.Second); len(ours()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it was removed when it was closed, and is listed still")
		}
	}
	must(t, other.RemoveNode("t-follow-b"))
}

func TestLongTable(t *testing.T) {
	c := open(t)
	d := disk(t, 0)
	var lines []string
	for i := range 3000 {
		lines = append(lines, fmt.Sprintf("%d 8 linear %v %d", 8*i, d, 16*i))
	}
	want := strings.Join(lines, "\n")
	mapped(t, c, "t-long", want)
	checkTable(t, c, "t-long", want)
}
