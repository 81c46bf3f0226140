//go:build kernel

package filesystem

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// fsynced creates files and waits for their fsync, so they must not be lost.
func fsynced(t *testing.T, dir, prefix string, n int) {
	t.Helper()
	for i := range n {
		sub := filepath.Join(dir, fmt.Sprintf("%s%d", prefix, i))
		if err := os.Mkdir(sub, 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(sub, "file"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err = f.Write(make([]byte, 5000)); err == nil {
			err = f.Sync()
		}
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// A copy of a file system shows everything that was acknowledged, or Clean
// reports that it does not, whatever happened to the original before.
func TestClean_copies(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(fs, func(t *testing.T) {
			list := disks(t, 2)
			length := max(64*size.MiB, MinimumSize(fs))
			table := linear(length, list[0], 0)
			src := Device{Path: mapped(t, "src", table), Type: fs}
			wipe(t, src.Path)
			if err := Format(t.Context(), src.Path, fs); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			open := func() {
				t.Helper()
				if err := src.Mount(dir, false, nil); err != nil {
					t.Fatal(err)
				}
			}
			powerCut := func() {
				t.Helper()
				tool(t, "dmsetup", "suspend", "--nolockfs", "src")
				reload(t, "src", fmt.Sprintf("0 %d error", length.Sectors()))
				if f, err := os.Open(dir); err == nil {
					_ = unix.IoctlSetInt(int(f.Fd()), fithaw, 0) // the file system may be frozen
					f.Close()
				}
				unmount(t, dir)
				reload(t, "src", table)
			}
			// check checks a copy of the disk's present content.
			check := func(what string, want bool, prefix string, n int) {
				t.Helper()
				t.Run(what, func(t *testing.T) {
					above := mapped(t, what+"-store", linear(length, list[1], 0))
					over := mapped(t, what+"-over", fmt.Sprintf("0 %d snapshot %s %s N 8", length.Sectors(), src.Path, above))
					d := Device{Path: over, Type: fs, Copy: true}
					got, err := d.Clean()
					if got != want || err != nil {
						t.Errorf("clean %t, %v", got, err)
					}
					shown := Device{Path: over, Type: fs, ReadOnly: true, Copy: true}
					at := t.TempDir()
					if !got {
						if err := shown.Mount(at, true, nil); !errors.Is(err, ErrUnclean) {
							t.Errorf("read-only mount of an unclean file system: %v", err)
						}
						if err := d.Replay(); err != nil {
							t.Fatal(err)
						}
					}
					shown.Path = mapped(t, what, linear(length, over, 0), "--readonly")
					if err := shown.Mount(at, true, nil); err != nil {
						t.Fatal(err)
					}
					if found, _ := filepath.Glob(at + "/" + prefix + "*/file"); len(found) != n {
						t.Errorf("%d files are shown, %d were synchronised", len(found), n)
					}
					unmount(t, at)
				})
			}
			check("new", true, "a", 0)
			open()
			fsynced(t, dir, "a", 20)
			powerCut()
			check("cut", false, "a", 20)
			open() // replays the journal
			unmount(t, dir)
			check("unmounted", true, "a", 20)
			open()
			fsynced(t, dir, "b", 20)
			unix.Sync()
			freeze(t, dir, fifreeze)
			powerCut()
			check("frozen", true, "b", 20)
			open()
			fsynced(t, dir, "c", 20)
			if fs != Btrfs {
				const shutdown, logflush = 0x8004587d, 1
				f := must(os.Open(dir))(t)
				if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, logflush); err != nil {
					t.Fatal(err)
				}
				f.Close()
				unmount(t, dir)
				check("shutdown", false, "c", 20)
				open()
			}
			for round := range 3 {
				fsynced(t, dir, fmt.Sprintf("r%d-", round), 60)
			}
			powerCut()
			check("much-cut", false, "r2-", 60)
			open()
			unmount(t, dir)
			check("much", true, "r2-", 60)
		})
	}
}

func must[V any](v V, err error) func(*testing.T) V {
	return func(t *testing.T) V {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
