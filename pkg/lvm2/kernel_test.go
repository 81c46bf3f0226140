//go:build kernel

package lvm2

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// These tests run this package and the real lvm2 on the same disks. They share
// the disks and the volume group's name, so none of them is parallel.

// kernelHost is the machine that the lvm2 tools see.
var kernelHost = Host{Hostname: "test"}

// lvm runs one of lvm2's commands, which must succeed and not warn.
func lvm(t testing.TB, args ...string) string {
	t.Helper()
	out, errs, err := tryLVM(args...)
	if err != nil || errs != "" {
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, out, errs)
	}
	return out
}

// expected are messages of the tests' own making: archives are off, a filter is
// and volumes are not zeroed when they are made inactive.
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

// fields runs a report command without headings and returns its lines' fields.
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

// healthy has lvm2 check the volume group: it must have nothing to say.
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

// locked edits under the lock, as users of this package do.
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

// backup returns vgcfgbackup's text without what every commit changes.
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
