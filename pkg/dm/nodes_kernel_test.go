//go:build kernel

package dm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func checkNode(t *testing.T, path string, d Device, link bool) {
	t.Helper()
	if have, err := DeviceOf(path); err != nil || have != d {
		t.Errorf("%s leads to %v, %v, not to %v", path, have, err, d)
	}
	st, err := os.Lstat(path)
	must(t, err)
	if isLink := st.Mode().Type() == fs.ModeSymlink; isLink != link || !link && st.Mode() != fs.ModeDevice|0o660 {
		t.Errorf("%s has mode %v", path, st.Mode())
	}
}

func checkNoNode(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s still exists: %v", path, err)
	}
}

// TestEnsureNode_withoutUdev: without udev, EnsureNode makes a node, replaces
// leftover nodes, and accepts only a link that leads to the device.
func TestEnsureNode_withoutUdev(t *testing.T) {
	c := open(t)
	if c.udevRuns() {
		t.Skip("udev runs on this machine: it would make links where the test expects nodes")
	}
	d := mapped(t, c, "t-a", "0 8 zero")
	for range 2 {
		path := node(t, c, "t-a", d)
		if path != "/dev/mapper/t-a" {
			t.Errorf("path is %s", path)
		}
		checkNode(t, path, d, false)
	}
	other := Device{d.Major, d.Minor + 1}
	checkNode(t, node(t, c, "t-a", other), other, false) // a leftover is replaced
	must(t, c.RemoveNode("t-a"))
	checkNoNode(t, c.Node("t-a"))
	must(t, c.RemoveNode("t-a"))

	must(t, os.Symlink("/dev/null", c.Node("t-a")))
	defer os.Remove(c.Node("t-a"))
	if path, err := c.EnsureNode(t.Context(), "t-a", d); err == nil {
		t.Errorf("a link to another file was accepted as %s", path)
	}
	must(t, os.Remove(c.Node("t-a")))
	must(t, os.Symlink(fmt.Sprintf("../dm-%d", d.Minor), c.Node("t-a")))
	checkNode(t, node(t, c, "t-a", d), d, true) // a link to the device is accepted
}

// TestWithDev_emptyDirectory: Open and EnsureNode create the nodes in a
// directory that has none, as in a container.
func TestWithDev_emptyDirectory(t *testing.T) {
	dir := t.TempDir()
	c, err := Open(WithDev(dir))
	must(t, err)
	defer c.Close()
	c.udev = t.TempDir() // udev does not manage dir even if it runs
	if _, err := os.Stat(filepath.Join(dir, "mapper", "control")); err != nil {
		t.Error(err)
	}
	if path := node(t, c, "t-a", Device{254, 7}); path != filepath.Join(dir, "mapper", "t-a") {
		t.Errorf("path is %s", path)
	}
}

// startUdev runs udevd until the end of the test.
func startUdev(t *testing.T) *exec.Cmd {
	t.Helper()
	if _, err := os.Stat("/run/udev/control"); err == nil {
		t.Skip("udev runs on this machine: the test would disturb it")
	}
	must(t, os.MkdirAll("/run/udev", 0o755))
	udevd := exec.Command("/lib/systemd/systemd-udevd", "--children-max=4")
	udevd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	udevd.Stderr = os.Stderr
	must(t, udevd.Start())
	t.Cleanup(func() {
		_ = udevd.Process.Signal(unix.SIGCONT)
		if err := udevd.Process.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		_ = udevd.Wait()
		if err := os.RemoveAll("/run/udev"); err != nil {
			t.Error(err)
		}
	})
	awaitUdev(t)
	was := udevWait
	udevWait = 2 * time.Minute // udevd is slow while the machine has other work
	t.Cleanup(func() { udevWait = was })
	return udevd
}

// awaitUdev waits until udevd answers. udevd makes its socket before it listens for the
// kernel's events, and never learns of an event in between.
func awaitUdev(t *testing.T) {
	t.Helper()
	eventually(t, func() bool { _, err := os.Stat("/run/udev/control"); return err == nil })
	ping := exec.Command("udevadm", "control", "--ping", "--timeout=60")
	ping.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	if out, err := ping.CombinedOutput(); err != nil {
		t.Fatalf("udevd does not answer: %v\n%s", err, out)
	}
}

// TestEnsureNode_withUdev: EnsureNode waits for udev's link, also if a new
// device has the name and number of an old one.
func TestEnsureNode_withUdev(t *testing.T) {
	startUdev(t)
	c := open(t)
	for i := range 5 { // the same name and number each time
		d := mapped(t, c, "t-a", fmt.Sprintf("0 %d zero", 8+8*i))
		path := node(t, c, "t-a", d)
		checkNode(t, path, d, true)
		must(t, c.Remove("t-a", UdevPrimarySource))
		must(t, c.RemoveNode("t-a"))
		checkNoNode(t, path)
	}
	d := mapped(t, c, "t-a", "0 8 zero")
	old := node(t, c, "t-a", d)
	must(t, c.Rename("t-a", "t-b", UdevPrimarySource))
	checkNode(t, node(t, c, "t-b", d), d, true)
	must(t, c.RemoveNode("t-a"))
	checkNoNode(t, old)
}

// TestEnsureNode_readOnlyDevice: udev also makes the link of a read-only
// device.
func TestEnsureNode_readOnlyDevice(t *testing.T) {
	startUdev(t)
	c := open(t)
	info, err := c.Create("t-ro", "")
	must(t, err)
	must(t, c.Load("t-ro", parse(t, slice(disk(t, 0), 0, 1)), true))
	must(t, c.Resume("t-ro", UdevPrimarySource))
	checkNode(t, node(t, c, "t-ro", info.Device), info.Device, true)
}

// TestEnsureNode_hiddenDevice: a device that is hidden from udev's rules has
// the path /dev/dm-MINOR.
func TestEnsureNode_hiddenDevice(t *testing.T) {
	startUdev(t)
	c := open(t)
	info, err := c.Create("t-hidden", "")
	must(t, err)
	must(t, c.Load("t-hidden", parse(t, "0 8 zero"), false))
	must(t, c.Resume("t-hidden", UdevDisableDM|UdevDisableSubsystem|UdevDisableDisk|UdevDisableOther|UdevPrimarySource))
	path := node(t, c, "t-hidden", info.Device)
	if want := fmt.Sprintf("/dev/dm-%d", info.Device.Minor); path != want {
		t.Errorf("path is %s, not %s", path, want)
	}
	checkNoNode(t, c.Node("t-hidden"))
}

// TestEnsureNode_udevHangs: an udevd that does not respond delays EnsureNode
// until the deadline, and then EnsureNode makes the node.
func TestEnsureNode_udevHangs(t *testing.T) {
	udevd := startUdev(t)
	c := open(t)
	must(t, udevd.Process.Signal(unix.SIGSTOP))
	d := mapped(t, c, "t-a", "0 8 zero")

	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if path, err := c.EnsureNode(ctx, "t-a", d); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled wait: %s, %v", path, err)
	}
	checkNoNode(t, c.Node("t-a"))

	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	begin := time.Now()
	path, err := c.EnsureNode(ctx, "t-a", d)
	must(t, err)
	if took := time.Since(begin); took < 200*time.Millisecond || took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	checkNode(t, path, d, false)
	checkNode(t, node(t, c, "t-a", d), d, false) // immediately
	must(t, c.RemoveNode("t-a"))
	checkNoNode(t, path)

	// A link to another file is not overwritten.
	must(t, os.Symlink("/dev/null", path))
	defer os.Remove(path)
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.EnsureNode(ctx, "t-a", d); err == nil {
		t.Error("a link to another file was accepted")
	}
	if to, err := os.Readlink(path); to != "/dev/null" {
		t.Errorf("the link is now to %q, %v", to, err)
	}
}

// TestEnsureNode_udevWithoutRules: EnsureNode does not wait for a link if udev
// has no rules for device-mapper.
func TestEnsureNode_udevWithoutRules(t *testing.T) {
	must(t, os.MkdirAll("/run/udev/rules.d", 0o755))
	for _, pattern := range []string{"/lib/udev/rules.d/*-dm.rules", "/lib/udev/rules.d/*-dm-*.rules"} {
		rules, err := filepath.Glob(pattern)
		must(t, err)
		for _, r := range rules {
			must(t, os.Symlink("/dev/null", filepath.Join("/run/udev/rules.d", filepath.Base(r))))
		}
	}
	masked, err := os.ReadDir("/run/udev/rules.d")
	must(t, err)
	if len(masked) == 0 || !strings.HasSuffix(masked[0].Name(), ".rules") {
		t.Fatal("the test found no rules to mask")
	}
	startUdev(t)
	c := open(t)
	d := mapped(t, c, "t-a", "0 8 zero")
	begin := time.Now()
	checkNode(t, node(t, c, "t-a", d), d, false)
	if took := time.Since(begin); took > udevWait/2 {
		t.Errorf("it took %v", took)
	}
}
