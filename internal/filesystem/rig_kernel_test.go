//go:build kernel

package filesystem

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// disks returns the scratch disks of the test kernel; at least n.
func disks(t *testing.T, n int) []string {
	t.Helper()
	list := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")
	if len(list) < n {
		t.Fatalf("%d scratch disks needed, DMSNAP_TEST_DISKS=%q", n, os.Getenv("DMSNAP_TEST_DISKS"))
	}
	return list
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func linear(length size.Bytes, disk string, at size.Bytes) string {
	return fmt.Sprintf("0 %d linear %s %d", length.Sectors(), disk, at.Sectors())
}

// mapped creates a device with a table and returns its path. The device is removed
// after the test.
func mapped(t *testing.T, name, table string, flags ...string) string {
	t.Helper()
	tool(t, "dmsetup", append([]string{"create", name, "--table", table}, flags...)...)
	t.Cleanup(func() { tool(t, "dmsetup", "remove", "--retry", name) })
	return "/dev/mapper/" + name
}

// reload replaces the table of a device.
func reload(t *testing.T, name, table string, flags ...string) {
	t.Helper()
	tool(t, "dmsetup", append([]string{"reload", name, "--table", table}, flags...)...)
	tool(t, "dmsetup", "resume", name)
}

// wipe zeroes the first MiB, where the signatures of all three file systems are.
func wipe(t *testing.T, device string) {
	t.Helper()
	writeAt(t, device, 0, make([]byte, 1<<20))
}

func writeAt(t *testing.T, device string, at int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// cloneDevice copies all bytes of a device.
func cloneDevice(t *testing.T, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := dst.Sync(); err != nil {
		t.Fatal(err)
	}
}

// mounted mounts a device on a new directory, until the test ends.
func mounted(t *testing.T, d Device, readOnly bool, options ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := d.Mount(dir, readOnly, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

func unmount(t *testing.T, dir string) {
	t.Helper()
	if err := Unmount(dir); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, dir, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, dir, content string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(dir, "file"))
	if err != nil || string(got) != content {
		t.Fatalf("file in %s: %q, %v; want %q", dir, got, err, content)
	}
}
