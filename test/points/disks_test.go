//go:build kernel && points

package points

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	group       = "vgpoints"
	secondGroup = "vgsecond"
	diskPrefix  = "pointsdisk"
	diskSize    = 160 * size.MiB
	pieceSize   = 64 * size.KiB
)

// disk is a disk of the pool: a file in memory, a loop device on it, and on top
// a linear device that can be cut off.
type disk struct {
	file       *os.File
	loop, path string
	name       string
	under      dm.Device
}

// newDisks makes n disks.
func newDisks(d *dm.Client, n int) (disks []*disk, err error) {
	for i := range n {
		x := &disk{name: fmt.Sprintf("%s%d", diskPrefix, i)}
		if x.file, err = os.Create("/dev/shm/" + x.name); err != nil {
			return nil, err
		}
		if err := x.file.Truncate(int64(diskSize)); err != nil {
			return nil, err
		}
		out, err := exec.Command("losetup", "-f", "--show", x.file.Name()).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("losetup: %w\n%s", err, out)
		}
		x.loop = strings.TrimSpace(string(out))
		if x.under, err = dm.DeviceOf(x.loop); err != nil {
			return nil, err
		}
		info, err := d.Create(x.name, "")
		if err != nil {
			return nil, err
		}
		if err := x.power(d, true); err != nil {
			return nil, err
		}
		if x.path, err = d.EnsureNode(context.Background(), x.name, info.Device); err != nil {
			return nil, err
		}
		disks = append(disks, x)
	}
	return disks, nil
}

// remove removes the disk's devices and its file.
func (x *disk) remove(d *dm.Client) error {
	return errors.Join(d.Remove(x.name, 0), d.RemoveNode(x.name), lvm("losetup", "-d", x.loop), os.Remove(x.file.Name()), x.file.Close())
}

// power reconnects the disk, or cuts it off, so that all I/O fails.
func (x *disk) power(d *dm.Client, on bool) error {
	var t dm.Target = dm.Linear{Device: x.under}
	if !on {
		t = dm.ErrorTarget{}
	}
	return errors.Join(d.Load(x.name, dm.Table{{Length: diskSize.Sectors(), Target: t}}, false), d.Resume(x.name, 0))
}

// image has a disk's content by offset in bytes, without pieces of zeroes.
type image map[int64][]byte

// save reads the disk's content.
func (x *disk) save() (image, error) {
	img := image{}
	zero := make([]byte, pieceSize)
	for at := int64(0); ; {
		from, err := unix.Seek(int(x.file.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return img, nil
		}
		if err != nil {
			return nil, err
		}
		from -= from % int64(pieceSize)
		b := make([]byte, pieceSize)
		if _, err := x.file.ReadAt(b, from); err != nil {
			return nil, err
		}
		if string(b) != string(zero) {
			img[from] = b
		}
		at = from + int64(pieceSize)
	}
}

// restore writes the image back to the disk, which must not be in use.
func (x *disk) restore(img image) error {
	err := unix.Fallocate(int(x.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, int64(diskSize))
	if err != nil {
		return err
	}
	for at, b := range img {
		if _, err := x.file.WriteAt(b, at); err != nil {
			return err
		}
	}
	for _, path := range []string{x.loop, x.path} {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("dropping the cache of %s: %w", path, err)
		}
	}
	return nil
}

// fail makes a device fail all I/O that waits in it. A mirror keeps the writes
// that a disk refused until the mirror is suspended.
func fail(d *dm.Client, name string) {
	table, err := d.Table(name)
	if err != nil || len(table) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if d.Load(name, dm.Table{{Length: table.Length(), Target: dm.ErrorTarget{}}}, false) == nil &&
		d.Suspend(ctx, name, dm.SuspendOptions{NoFlush: true, SkipLockFS: true}) == nil {
		_ = d.Resume(name, 0)
	}
}

// mirrors reports whether a device is a mirror. Mirrors must fail first,
// because other devices wait for the writes that they keep.
func mirrors(d *dm.Client, name string) bool {
	table, err := d.Table(name)
	return err == nil && len(table) > 0 && table[0].Target.Type() == "mirror"
}

// errStuck is returned when the kernel has devices that cannot be removed, so
// that this kernel can no longer be used.
var errStuck = errors.New("devices cannot be removed; this kernel can no longer be used")

// takeDownLimit is how long removing all devices may take. A device that waits
// for another one takes one second of it.
const takeDownLimit = 40 * time.Second

// ofGroup reports whether a device is one of the group, or of the second group.
func ofGroup(name string) bool {
	return strings.HasPrefix(name, group+"-") || strings.HasPrefix(name, secondGroup+"-")
}

// takeDown removes all devices of the groups, as the end of a machine does.
func takeDown(d *dm.Client) error {
	done := make(chan error, 1)
	go func() {
		for pass := range 100 {
			all, err := d.List()
			if err != nil {
				done <- err
				return
			}
			left := 0
			for _, e := range all {
				if !ofGroup(e.Name) {
					continue
				}
				left++
				if pass > 20 && (pass%2 == 0 || mirrors(d, e.Name)) {
					fail(d, e.Name)
				}
				if info, err := d.Info(e.Name); err == nil && (info.Suspended || info.Loaded) {
					_ = d.Clear(e.Name)
					if info.Suspended {
						_ = d.Resume(e.Name, 0)
					}
				}
				if d.Remove(e.Name, 0) == nil {
					_ = d.RemoveNode(e.Name)
				}
			}
			if left == 0 {
				done <- nil
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		done <- errStuck
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(takeDownLimit):
		return errStuck
	}
}
