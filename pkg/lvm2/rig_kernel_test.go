//go:build kernel

package lvm2

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// These tests run this package and the real lvm2 on the same disks. They share the
// disks and the volume group's name, so none of them is parallel.

// kernelHost has the files and directories that the lvm2 tools use.
var kernelHost = Host{Hostname: "test"}

// lvm runs a command of lvm2, which must succeed without a warning.
func lvm(t testing.TB, args ...string) string {
	t.Helper()
	out, errs, err := tryLVM(args...)
	if err != nil || errs != "" {
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, out, errs)
	}
	return out
}

// expected are warnings that the tests cause: archives are off, a filter is set, and
// inactive logical volumes are not zeroed.
var expected = []string{"NOT backed up", "not zeroed", "leaked on", "remove the lvm.conf global_filter"}

func tryLVM(args ...string) (out, errs string, err error) {
	cmd := lvmCommand(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	for line := range strings.Lines(stderr.String()) {
		if !slices.ContainsFunc(expected, func(s string) bool { return strings.Contains(line, s) }) {
			errs += line
		}
	}
	return stdout.String(), errs, err
}

func lvmCommand(args ...string) *exec.Cmd {
	return exec.Command(args[0], args[1:]...)
}

// fields runs a report command without headings and returns the fields of its lines.
func fields(t testing.TB, args ...string) [][]string {
	t.Helper()
	var rows [][]string
	for line := range strings.Lines(lvm(t, append(args, "--noheadings", "--separator", "|")...)) {
		var row []string
		for _, f := range strings.Split(line, "|") {
			row = append(row, strings.TrimSpace(f))
		}
		rows = append(rows, row)
	}
	return rows
}

func command(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// scratch returns n blank disks.
func scratch(t testing.TB, n int) []string {
	t.Helper()
	disks := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")
	if len(disks) < n || disks[0] == "" {
		t.Fatalf("the test needs %d scratch disks in DMSNAP_TEST_DISKS", n)
	}
	clear := func() {
		for _, path := range disks[:n] {
			d, err := openDevice(path, os.O_RDWR)
			if err != nil {
				t.Fatal(err)
			}
			zeroes := alignedBuffer(size.MiB)
			for _, at := range []size.Bytes{0, 64 * size.KiB, d.size - size.MiB} {
				if err := d.write(zeroes, at); err != nil {
					t.Fatal(err)
				}
			}
			if err := d.file.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := kernelHost.dropHints(); err != nil {
			t.Fatal(err)
		}
	}
	clear()
	t.Cleanup(clear)
	return disks[:n]
}

// scsiDisk creates a SCSI disk in memory, which has a WWID.
func scsiDisk(t *testing.T) string {
	t.Helper()
	const driver = "/sys/bus/pseudo/drivers/scsi_debug"
	if _, err := os.Stat(driver); err == nil { // built in
		command(t, "sh", "-c", "echo 0 >"+driver+"/fake_rw; echo 1 >"+driver+"/add_host")
		t.Cleanup(func() { command(t, "sh", "-c", "echo -1 >"+driver+"/add_host") })
	} else {
		command(t, "busybox", "modprobe", "scsi_debug", "dev_size_mb=64")
		command(t, "busybox", "modprobe", "sd_mod")
		t.Cleanup(func() { exec.Command("busybox", "modprobe", "-r", "scsi_debug").Run() })
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if model, _ := filepath.Glob("/sys/block/sd*/device/model"); len(model) > 0 {
			disk := "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(model[0])))
			if _, err := os.Stat(disk); err == nil {
				return disk
			}
		}
	}
	t.Fatal("the disk of scsi_debug does not appear")
	return ""
}

// loopDisk creates a loop device of a file whose name has a blank.
func loopDisk(t *testing.T, options ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("disk", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	file := filepath.Join(dir, "my disk")
	command(t, "truncate", "-s", "64M", file)
	loop := command(t, append(append([]string{"losetup", "-f", "--show"}, options...), file)...)
	t.Cleanup(func() { exec.Command("losetup", "-d", loop).Run() })
	return loop
}

// healthy runs vgck on the volume group, which must report nothing.
func healthy(t testing.TB) {
	t.Helper()
	if out := lvm(t, "vgck", "vg"); out != "" {
		t.Errorf("vgck: %s", out)
	}
}

func openKernelVG(t testing.TB, disks []string) *Store {
	t.Helper()
	s, err := OpenVG(context.Background(), kernelHost, "vg", disks)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// locked edits the volume group under its lock.
func locked(t testing.TB, s *Store, change func(*VG) error) *VG {
	t.Helper()
	l, err := kernelHost.LockVG(context.Background(), "vg", Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Unlock(); err != nil {
			t.Error(err)
		}
	}()
	return edit(t, s, change)
}

// backup returns the text of vgcfgbackup without the lines that every commit changes.
func backup(t testing.TB) string {
	t.Helper()
	path := t.TempDir() + "/backup"
	lvm(t, "vgcfgbackup", "-f", path, "vg")
	return comparable(t, path)
}

func comparable(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changing := []string{"seqno", "description", "creation_time", "creation_host", "#"}
	var kept strings.Builder
	for line := range strings.Lines(string(text)) {
		key, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasPrefix(line, "\t\t") || !slices.Contains(changing, key) {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// overwriteDevice writes the first bytes of a disk.
func overwriteDevice(t testing.TB, path string, b []byte) {
	t.Helper()
	d, err := openDevice(path, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.write(b, 0), d.file.Close()); err != nil {
		t.Fatal(err)
	}
}
