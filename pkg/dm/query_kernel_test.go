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

// TestDeps_eachDeviceOnce: Deps lists each device of a table once, and none for
// a table without devices.
func TestDeps_eachDeviceOnce(t *testing.T) {
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

// TestMessage_answer: Message returns the target's answer, and explains a
// refusal.
func TestMessage_answer(t *testing.T) {
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
		t.Errorf("a message to a target without messages: %v", err)
	}
}

// TestList_longerThanBuffer: List returns more devices than the first buffer
// has room for.
func TestList_longerThanBuffer(t *testing.T) {
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

// TestList_followsChanges: List follows every change of the devices, also by
// other programs, and does not ask the kernel while nothing changes.
func TestList_followsChanges(t *testing.T) {
	c, other := open(t), open(t)
	ours := func() map[string]ListEntry {
		t.Helper()
		entries, err := c.List()
		must(t, err)
		again, err := c.List()
		must(t, err)
		if len(entries) > 0 && &entries[0] != &again[0] {
			t.Error("List asked the kernel again although nothing had changed")
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
			t.Fatal("the device is still listed after its deferred removal")
		}
	}
	must(t, other.RemoveNode("t-follow-b"))
}

// TestTable_longerThanBuffer: Table returns a table that is longer than the
// first buffer.
func TestTable_longerThanBuffer(t *testing.T) {
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
