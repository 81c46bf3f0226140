//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

var formerBytes = bytes.Repeat([]byte("a former owner's"), 4096/16)

// used writes a former owner's bytes to each MiB of the first scratch disk, except
// the MiB for the pool's label.
func used(t *testing.T) string {
	t.Helper()
	disk := testDisks(t)[0]
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	ok(t, err)
	defer f.Close()
	end := must(f.Seek(0, 2))(t)
	for at := int64(size.MiB); at < end; at += int64(size.MiB) {
		_, err := f.WriteAt(formerBytes, at)
		ok(t, err)
	}
	ok(t, f.Sync())
	return disk
}

// former returns the number of MiB in extents that hold a former owner's bytes.
func former(t *testing.T, v *view, set catalog.RangeSet) (n int) {
	t.Helper()
	f, err := os.Open(v.VG.PVs[0].Device)
	ok(t, err)
	defer f.Close()
	b := make([]byte, len(formerBytes))
	for _, r := range set {
		from := int64(v.VG.Offset(v.VG.PVs[r.PV], r.Start).Bytes())
		for at := from; at < from+int64(size.Bytes(r.Count)*v.ExtentSize()); at += int64(size.MiB) {
			_, err := f.ReadAt(b, at)
			ok(t, err)
			if bytes.Equal(b, formerBytes) {
				n++
			}
		}
	}
	return n
}

// dropCache drops the page cache, so that later reads come from the disk.
func dropCache(t *testing.T) { ok(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0)) }

func waitClean(t *testing.T, p *Pool) *view {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		v := must(p.latest())(t)
		if v.UnwipedFree() == 0 && len(v.Trash) == 0 {
			return v
		}
		if time.Now().After(end) {
			t.Fatalf("%v are still not clean: %v", v.UnwipedFree(), p.wiper.problem())
		}
	}
}

// TestCleaner_usedDisk: without configuration, the cleaner cleans a used disk that can
// zero extents itself in the background. The record of the clean extents survives a
// restart, and ends with the first change by lvm2. Then cleaning begins again.
func TestCleaner_usedDisk(t *testing.T) {
	ctx := context.Background()
	used(t)
	quick := func(c *Config) { c.cleanAfter = 10 * time.Millisecond }
	p := testPoolOn(t, quick)
	v := waitClean(t, p)
	dropCache(t)
	if n := former(t, v, v.Free); n > 0 || v.Free.Size() < 200 {
		t.Errorf("%d clean extents hold %d MiB of a former owner's bytes", v.Free.Size(), n)
	}
	if u := must(p.Usage())(t); u.Unwiped != 0 || u.Trash != 0 {
		t.Errorf("after cleaning, %v are not clean and %v are trash", u.Unwiped, u.Trash)
	}
	files := must(p.CreateVolume(ctx, VolumeSpec{Name: "files", Size: 64 * size.MiB, Mode: Filesystem, FSType: "ext4"}))(t)
	if files.Unwiped != 0 {
		t.Errorf("%v of a volume on clean extents are unwiped", files.Unwiped)
	}
	ok(t, p.Close())
	c := p.config
	c.cleanAfter = time.Hour
	p = openPool(t, c)
	if v := must(p.latest())(t); v.UnwipedFree() != 0 {
		t.Errorf("after a restart %v are not clean", v.UnwipedFree())
	}
	found := must(Inspect(ctx, c, Options{}))(t)
	if found.Unwiped != 0 || found.Clean != CleanBackground {
		t.Errorf("for Inspect, %v are not clean, and the choice is %q", found.Unwiped, found.Clean)
	}
	lvm(t, "lvcreate", "-qq", "-y", "-Wn", "-Zn", "-L64m", "-n", "theirs", c.VolumeGroup)
	lv := "/dev/" + c.VolumeGroup + "/theirs"
	for at := int64(0); at < 64<<20; at += 1 << 20 {
		writeDevice(t, lv, at, formerBytes)
	}
	lvm(t, "lvremove", "-qq", "-y", c.VolumeGroup+"/theirs")
	ok(t, p.refresh(ctx))
	if v := must(p.latest())(t); v.UnwipedFree() == 0 || len(v.Clean) > 0 {
		t.Error("extents count as clean after a change by lvm2")
	}
	ok(t, p.Close())
	p = openPool(t, with(c, quick))
	v = waitClean(t, p)
	dropCache(t)
	if n := former(t, v, v.Free); n > 0 {
		t.Errorf("extents that lvm2 freed hold %d MiB of a former owner's bytes", n)
	}
	ok(t, p.Close())
}

// cleaning is the volume group that a process of TestCleaner_killed cleans.
const cleaning = "DMSNAP_TEST_CLEAN"

// TestCleaner_killed: after the cleaning process is killed and its devices are removed,
// as in a power cut, no extent that counts as clean holds a former owner's bytes. No
// extent is lost, and the next process continues.
func TestCleaner_killed(t *testing.T) {
	ctx := context.Background()
	quick := func(c *Config) { c.cleanAfter = 10 * time.Millisecond }
	if vg := os.Getenv(cleaning); vg != "" {
		openPool(t, Config{Name: "pool", VolumeGroup: vg, cleanAfter: 10 * time.Millisecond, HydrationRate: 512 * size.MiB})
		time.Sleep(time.Minute)
		return
	}
	used(t)
	p := testPoolOn(t, func(c *Config) { c.Clean = CleanNever })
	c := p.config
	v := must(p.latest())(t)
	total := v.Free.Size()
	ok(t, p.Close())
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	before := total
	for round := 0; round < 5 && before > 0; round++ {
		child := exec.Command("/proc/self/exe", "-test.run=^TestCleaner_killed$")
		child.Env = append(os.Environ(), cleaning+"="+c.VolumeGroup)
		ok(t, child.Start())
		time.Sleep(250*time.Millisecond + time.Duration(r.Int64N(int64(400*time.Millisecond))))
		ok(t, child.Process.Kill())
		child.Wait()
		removeDevices(t, c.VolumeGroup)
		p = openPool(t, c)
		waitIdle(t, p)
		v = must(p.latest())(t)
		dropCache(t)
		if n := former(t, v, v.Clean); n > 0 {
			t.Fatalf("round %d: %d extents that count as clean hold %d MiB of a former owner's bytes", round, v.Clean.Size(), n)
		}
		left := v.Free.Subtract(v.Clean).Size()
		t.Logf("round %d: %d of %d extents are clean", round, v.Clean.Size(), total)
		if v.Free.Size() != total || left > before {
			t.Errorf("round %d: %d of %d extents are free, and %d are not clean after %d before", round, v.Free.Size(), total, left, before)
		}
		before = left
		ok(t, p.Close())
	}
	if before == total {
		t.Error("nothing was cleaned before the kills, so this test proves nothing")
	}
	p = openPool(t, with(c, func(c *Config) { c.Clean = ""; quick(c) }))
	if v = waitClean(t, p); v.Free.Size() != total {
		t.Errorf("%d of %d extents are free", v.Free.Size(), total)
	}
	must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 64 * size.MiB, Mode: Block}))(t)
	ok(t, p.Close())
}

// TestCleaning_volumesGetCleanExtents: volumes get clean extents first, even in several
// pieces. Stores leave them to volumes. A growing volume gets only clean extents.
func TestCleaning_volumesGetCleanExtents(t *testing.T) {
	ctx := context.Background()
	used(t)
	p := testPoolOn(t, nil)
	total := must(p.latest())(t).Free.Size()
	// 40 extents, in pieces of 4.
	var pieces []lvm2.Range
	for i := range lvm2.Extents(10) {
		pieces = append(pieces, lvm2.Range{Start: 8 * i, Count: 4})
	}
	ok(t, p.do(ctx, &change{what: "pieces for a test", edit: func(e *edit) error {
		trash := catalog.NewLV("", "trash")
		trash.Segments = catalog.AppendExtents(nil, e.Take(pieces...)...)
		return e.Put(trash)
	}}))
	p.wiper.wake()
	waitIdle(t, p)
	extent := must(p.latest())(t).ExtentSize()
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 30 * extent, Mode: Filesystem, FSType: "ext4"}))(t)
	if v.Unwiped != 0 {
		t.Errorf("%v of the volume are unwiped, although there were clean extents", v.Unwiped)
	}
	must(p.CreateSnapshot(ctx, "s", v.LV))(t)
	if left := must(p.latest())(t); left.Clean.Size() != 10 {
		t.Errorf("%d of 10 clean extents are left: the store took clean extents", left.Clean.Size())
	}
	err := error(&PendingError{})
	var pending *PendingError
	for end := time.Now().Add(20 * time.Second); errors.As(err, &pending) && time.Now().Before(end); {
		v, err = p.ExpandVolume(ctx, v.LV, 60*extent, 0)
	}
	ok(t, err)
	if v.Unwiped != 0 || v.Size != 60*extent {
		t.Errorf("the volume has grown to %v, and %v of it are unwiped", v.Size, v.Unwiped)
	}
	if now := must(p.latest())(t); now.Free.Size() > total-60 {
		t.Errorf("%d extents are free, want at most %d", now.Free.Size(), total-60)
	}
}

// TestCleaning_atFirstUse: before its first use a volume is zeroed, unless the choice is
// CleanNever. Only a zeroed volume may be copied to a block volume.
func TestCleaning_atFirstUse(t *testing.T) {
	ctx := context.Background()
	for _, clean := range []Cleaning{"", CleanBackground, CleanFirstUse, CleanNever} {
		used(t)
		p := testPoolOn(t, func(c *Config) { c.Clean = clean })
		files := must(p.CreateVolume(ctx, VolumeSpec{Name: "files", Size: 128 * size.MiB, Mode: Filesystem, FSType: "ext4"}))(t)
		path := must(p.Activate(ctx, files.LV))(t)
		found := false
		for at := size.Bytes(0); at < files.Size; at += size.MiB {
			found = found || bytes.Equal(readPart(t, path, at, 4096), formerBytes)
		}
		files = must(p.Volume(ctx, files.LV))(t)
		if never := clean == CleanNever; found != never || (files.Unwiped > 0) != never {
			t.Errorf("clean %q: a former owner's bytes were found: %v; %v are unwiped", clean, found, files.Unwiped)
		}
		ok(t, p.SetFormatted(ctx, files.LV))
		s := must(p.CreateSnapshot(ctx, "s", files.LV))(t)
		_, err := p.CreateVolume(ctx, VolumeSpec{Name: "raw", Mode: Block, Source: Source{Kind: FromSnapshot, LV: s.LV}})
		if (err == nil) != (clean != CleanNever) || err != nil && !errors.Is(err, ErrPrecondition) {
			t.Errorf("clean %q: a copy to a block volume returned %v", clean, err)
		}
		// The device above a snapshot cannot zero extents itself.
		if clean == "" && (zeroesItself(must(dm.DeviceOf(path))(t)) || !zeroesItself(must(dm.DeviceOf(testDisk(p)))(t))) {
			t.Error("zeroesItself is wrong for the volume or the disk")
		}
		for _, o := range must(p.Volumes(ctx))(t) {
			waitHydrated(t, p, o.LV)
			ok(t, p.Deactivate(ctx, o.LV))
		}
		ok(t, p.Close())
		lvm(t, "vgchange", "-qq", "-an", p.config.VolumeGroup)
	}
}

func testDisk(p *Pool) string { return p.current.Load().VG.PVs[0].Device }

func with(c Config, change func(*Config)) Config {
	change(&c)
	return c
}

// testPoolOn is testPool on a disk that keeps its content.
func testPoolOn(t *testing.T, change func(*Config)) *Pool {
	t.Helper()
	c := Config{Name: "pool", VolumeGroup: "vgclean", Devices: strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")[:1], Create: true, FirstStore: 8 * size.MiB}
	if change != nil {
		change(&c)
	}
	p := openPool(t, c)
	t.Cleanup(func() {
		p.Close()
		if !t.Failed() {
			vgck(t, c.VolumeGroup)
		}
		removeDevices(t, c.VolumeGroup)
	})
	return p
}
