//go:build kernel

package filesystem

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// freeze freezes or thaws a mounted file system, as a device-mapper suspend does.
func freeze(t *testing.T, dir string, request uint) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), request, 0); err != nil {
		t.Fatalf("freeze or thaw %s: %v", dir, err)
	}
}

const fifreeze, fithaw = 0xc0045877, 0xc0045878

// source mounts a file system with a file in it. copied is a copy of the device,
// taken while the file system was mounted and frozen.
func source(t *testing.T, fs string) (src Device, dir string, copied Device) {
	t.Helper()
	list := disks(t, 2)
	length := max(MinimumSize(fs), 64*size.MiB)
	src = Device{Path: mapped(t, "src", linear(length, list[0], 0)), Type: fs}
	copied = Device{Path: mapped(t, "copy", linear(length, list[1], 0)), Type: fs, Copy: true}
	wipe(t, src.Path)
	if err := Format(t.Context(), src.Path, fs); err != nil {
		t.Fatal(err)
	}
	dir = mounted(t, src, false)
	write(t, dir, "as it was")
	freeze(t, dir, fifreeze)
	cloneDevice(t, src.Path, copied.Path)
	freeze(t, dir, fithaw)
	write(t, dir, "as it is")
	return src, dir, copied
}

// A writable copy with its own identity can be mounted beside its source and
// beside its own copy.
func TestMount_writableCopy(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(fs, func(t *testing.T) {
			_, dir, copied := source(t, fs)
			for range 2 { // the second time nothing is left to do
				if err := copied.SetIdentity("copy"); err != nil {
					t.Fatal(err)
				}
			}
			at := mounted(t, copied, false)
			expect(t, at, "as it was")
			write(t, at, "my own")
			expect(t, dir, "as it is")
			unmount(t, at)

			// A copy of the copy, mounted beside both.
			second := Device{Path: mapped(t, "second", linear(max(MinimumSize(fs), 64*size.MiB), disks(t, 2)[1], 512*size.MiB)), Type: fs, Copy: true}
			cloneDevice(t, copied.Path, second.Path)
			if err := second.SetIdentity("second copy"); err != nil {
				t.Fatal(err)
			}
			at = mounted(t, copied, false)
			at2 := mounted(t, second, false)
			expect(t, at, "my own")
			expect(t, at2, "my own")
			write(t, at2, "another")
			expect(t, at, "my own")
			if fs == Btrfs {
				unmount(t, at2)
				tool(t, "btrfs", "check", "--readonly", second.Path)
			}
		})
	}
}

// A read-only copy can be mounted beside its source, or is refused if the
// kernel cannot distinguish them.
func TestMount_readOnlyCopy(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(fs, func(t *testing.T) {
			src, dir, copied := source(t, fs)
			table := linear(max(MinimumSize(fs), 64*size.MiB), disks(t, 2)[1], 0)
			reload(t, "copy", table, "--readonly")
			copied.ReadOnly = true
			if err := copied.SetIdentity("copy"); err != nil {
				t.Fatal(err)
			}
			if fs == Btrfs {
				if err := copied.Mount(t.TempDir(), true, nil); !errors.Is(err, ErrDuplicate) {
					t.Fatalf("mount beside its source: %v", err)
				}
				unmount(t, dir)
				at := mounted(t, copied, true)
				expect(t, at, "as it was")
				if err := src.Mount(dir, false, nil); !errors.Is(err, ErrDuplicate) {
					t.Fatalf("mount of the source beside its copy: %v", err)
				}
				again := mounted(t, copied, true)
				expect(t, again, "as it was")
				return
			}
			at := mounted(t, copied, false)
			expect(t, at, "as it was")
			if err := os.WriteFile(at+"/new", nil, 0o600); !errors.Is(err, unix.EROFS) {
				t.Errorf("write to a read-only copy: %v", err)
			}
			expect(t, dir, "as it is")
			unmount(t, dir)
			if err := src.Mount(dir, false, nil); err != nil {
				t.Errorf("source beside its read-only copy: %v", err)
			}
		})
	}
}
