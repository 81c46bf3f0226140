//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestThaw_notDuringOperation: a file system that its owner left frozen is thawed. A
// freeze during an operation on the volume, which may be the operation's own, stays.
func TestThaw_notDuringOperation(t *testing.T) {
	p := testPool(t, nil)
	v, _, dir := mountedVolume(t, p, "ext4", 32*size.MiB)
	release := must(p.keys.lock(t.Context(), lvKey(v.LV)))(t)
	ok(t, setFrozen(dir, true))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if thawed, err := p.Thaw(ctx, v.LV, dir); thawed || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("during an operation, Thaw returned %v, %v", thawed, err)
	}
	ok(t, setFrozen(dir, false)) // EINVAL if it is no longer frozen
	release()
	for _, frozen := range []bool{false, true, false} {
		if frozen {
			ok(t, setFrozen(dir, true))
		}
		if thawed, err := p.Thaw(t.Context(), v.LV, dir); thawed != frozen || err != nil {
			t.Errorf("frozen: %v; Thaw returned %v, %v", frozen, thawed, err)
		}
		if err := setFrozen(dir, false); !errors.Is(err, unix.EINVAL) {
			t.Errorf("the file system is still frozen: %v", err)
		}
	}
}

// TestStillFails_errorIsOver: after the write-back of a block failed once, and the disk
// works again, a cut of the file system succeeds.
func TestStillFails_errorIsOver(t *testing.T) {
	disk := testDisks(t)[0]
	const offset = 2048 // so that lvm2 does not find the group on the disk itself
	n := must(strconv.ParseUint(command(t, "blockdev", "--getsz", disk), 10, 64))(t) - offset
	good := fmt.Sprintf("0 %d linear %s %d", n, disk, offset)
	command(t, "dmsetup", "create", "holed", "--noudevsync", "--table", good)
	t.Cleanup(func() { command(t, "dmsetup", "remove", "--retry", "holed") })
	p := testPool(t, func(c *Config) { c.Devices = []string{"/dev/mapper/holed"} })
	v, path, dir := mountedVolume(t, p, "ext4", 32*size.MiB)
	reload := func(table string) {
		t.Helper()
		command(t, "dmsetup", "suspend", "--nolockfs", "holed")
		command(t, "dmsetup", "load", "holed", "--table", table)
		command(t, "dmsetup", "resume", "--noudevsync", "holed")
	}
	f := must(os.Create(filepath.Join(dir, "file")))(t)
	defer f.Close()
	block := bytes.Repeat([]byte("a block of a file"), 4096/16)[:4096]
	must(f.Write(block))(t)
	ok(t, f.Sync())
	at := bytes.Index(readDevice(t, path, v.Size), block)
	if at < 0 || at%512 != 0 {
		t.Fatalf("the block is not on the volume at a sector, but at byte %d", at)
	}
	group := must(p.latest())(t)
	hole := uint64(group.VG.Offset(group.VG.PVs[0], group.Named.Get("base").LV.Segments[0].Stripes[0].Start) + size.Bytes(at).Sectors())
	reload(fmt.Sprintf("0 %d linear %s %d\n%[1]d 8 error\n%[4]d %[5]d linear %[2]s %[6]d", hole, disk, offset, hole+8, n-hole-8, offset+hole+8))
	must(f.WriteAt(block, 0))(t)
	if err := unix.SyncFileRange(int(f.Fd()), 0, 4096, unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER); !errors.Is(err, unix.EIO) {
		t.Errorf("writing back the block returned %v, want EIO", err)
	}
	reload(good)
	must(p.CreateSnapshot(t.Context(), "after", v.LV))(t)
	ok(t, p.DeleteSnapshot(t.Context(), "after"))
}
