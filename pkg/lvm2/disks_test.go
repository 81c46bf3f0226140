//go:build !kernel

package lvm2

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The tests that need no kernel use sparse files as disks. They are not built
// into the kernel tests: these would only run them again, and slower.

func testHost(t testing.TB) Host {
	dir := t.TempDir()
	return Host{LockDir: filepath.Join(dir, "lock"), Hints: filepath.Join(dir, "hints"), Hostname: "test"}
}

func blankDisks(t testing.TB, n int, length size.Bytes) []string {
	t.Helper()
	dir := t.TempDir()
	paths := make([]string, n)
	for i := range paths {
		paths[i] = filepath.Join(dir, fmt.Sprintf("disk%d", i))
		f, err := os.Create(paths[i])
		if err == nil {
			err = f.Truncate(int64(length))
			f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return paths
}

func createVG(t testing.TB, h Host, disks []string, o CreateOptions) *Store {
	t.Helper()
	if err := CreateVG(context.Background(), h, "vg", disks, o); err != nil {
		t.Fatal(err)
	}
	return openVG(t, h, disks)
}

func openVG(t testing.TB, h Host, disks []string) *Store {
	t.Helper()
	s, err := OpenVG(context.Background(), h, "vg", disks)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func parseFile(t testing.TB, name string) *VG {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, string(text))
}

func parse(t testing.TB, text string) *VG {
	t.Helper()
	vg, err := ParseVG([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return vg
}

// overwrite puts bytes into a disk behind the package's back.
func overwrite(t testing.TB, path string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}
