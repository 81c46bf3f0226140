//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestInterruptedCut: a process that dies between a cut's commit and its
// ioctls, or inside the window, leaves the cut to its successor.
func TestInterruptedCut(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 16 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	for i, at := range []string{"committed", "suspended"} {
		first := fmt.Sprintf("s%d", 2*i)
		writeDevice(t, path, 0, bytes.Repeat([]byte{byte('0' + i)}, 4096))
		must(p.CreateSnapshot(ctx, first, v.LV))(t)
		writeDevice(t, path, 0, bytes.Repeat([]byte{byte('A' + i)}, 4096))
		must(p.keys.lock(ctx, lvKey(v.LV)))(t) // for good: the monitor would carry the cut out
		ok(t, p.do(ctx, &change{what: "half a cut", edit: func(e *edit) error {
			_, err := p.cut(e, e.VolumeByLV(v.LV), fmt.Sprintf("s%d", 2*i+1))
			return err
		}}))
		if at == "suspended" {
			ok(t, p.dm.Suspend(ctx, p.vgName+"-v", dm.SuspendOptions{}))
		}
		ok(t, p.Close())
		p = openPool(t, p.config)
		writeDevice(t, path, 0, bytes.Repeat([]byte{byte('a' + i)}, 4096))
		r := must(p.CreateVolume(ctx, VolumeSpec{Name: fmt.Sprintf("r%d", i), Mode: Block, Source: Source{Kind: FromSnapshot, LV: first}}))(t)
		if got := readDevice(t, must(p.Activate(ctx, r.LV))(t), 4096)[0]; got != byte('0'+i) {
			t.Errorf("%s: the snapshot before the interrupted cut has %q", at, got)
		}
		ok(t, p.Deactivate(ctx, r.LV))
		if n := len(settledTo(t, p, 4)); n != 4 {
			t.Errorf("%s: devices %v", at, devicesOf(t, p))
		}
	}
	ok(t, p.Deactivate(ctx, v.LV))
}

// TestCutUnderReader cuts again and again while an older snapshot is being
// read: its device must move below the new layer without the reader noticing.
func TestCutUnderReader(t *testing.T) {
	const length = 16 * size.MiB
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: length, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	content := make([]byte, length)
	r := rand.New(rand.NewPCG(7, 7))
	write := func() {
		for range 40 {
			data := bytes.Repeat([]byte{byte(r.Uint32())}, 4096)
			off := r.IntN(len(content)/4096) * 4096
			writeDevice(t, path, int64(off), data)
			copy(content[off:], data)
		}
	}
	type open struct {
		dev  string
		f    *os.File
		want []byte
	}
	var readers []open
	for i := range 5 {
		write()
		s := must(p.CreateSnapshot(ctx, fmt.Sprintf("s%d", i), v.LV))(t)
		want := bytes.Clone(content)
		write()
		var dev string
		release := must(p.keys.lock(ctx, lvKey(v.LV)))(t)
		ok(t, p.do(ctx, &change{what: "open a snapshot", act: func(ctx context.Context, w *view) (err error) {
			l := w.SnapshotByLV(s.LV)
			dev, err = p.chainUp(ctx, w, w.Volumes[l.Of], l)
			return err
		}}))
		readers = append(readers, open{dev, must(os.OpenFile(dev, os.O_RDONLY|unix.O_DIRECT, 0))(t), want})
		release()
		for j, o := range readers {
			if got := readDevice(t, o.dev, length); !bytes.Equal(got, o.want) {
				t.Fatalf("after cut %d: snapshot %d has wrong bytes", i, j)
			}
		}
	}
	if n := len(settledTo(t, p, 2+2*5)); n != 2+2*5 {
		t.Errorf("with five snapshots open there are %d devices: %v", n, devicesOf(t, p))
	}
	for _, o := range readers {
		o.f.Close()
	}
	must(p.CreateSnapshot(ctx, "last", v.LV))(t)
	ok(t, p.Close())
	p = openPool(t, p.config) // a new process takes down what nobody reads
	if n := len(settledTo(t, p, 4)); n != 4 {
		t.Errorf("with no snapshot open there are %d devices: %v", n, devicesOf(t, p))
	}
	ok(t, p.Deactivate(ctx, v.LV))
}

// TestFullStore: when a store is full and the pool too, the volume goes on, and
// the snapshot and the older ones are reported lost, for good.
func TestFullStore(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.FirstStore = 4 * size.MiB })
	fill := must(p.Capacity(ctx))(t).MaxVolume - 64*size.MiB
	must(p.CreateVolume(ctx, VolumeSpec{Name: "fill", Size: fill, Mode: Block}))(t)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 64 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	must(p.CreateSnapshot(ctx, "older", v.LV))(t)
	writeDevice(t, path, 0, bytes.Repeat([]byte{1}, 4096))
	must(p.CreateSnapshot(ctx, "newer", v.LV))(t)
	for i := range int64(16) {
		writeDevice(t, path, i<<22, bytes.Repeat([]byte{byte(i + 2)}, 1<<22))
	}
	for deadline := time.Now().Add(20 * time.Second); !must(p.Snapshot(ctx, "older"))(t).Lost; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the loss was not recorded")
		}
	}
	if got := readDevice(t, path, v.Size)[v.Size-1]; got != 17 {
		t.Errorf("the volume ends with %d", got)
	}
	if h := must(p.Health(ctx, v.LV))(t); len(h) != 2 || h[0].Reason != "SnapshotLost" {
		t.Errorf("health: %v", h)
	}
	ok(t, p.Deactivate(ctx, v.LV))
	ok(t, p.Close())
	p = openPool(t, p.config)
	for _, s := range must(p.Snapshots(ctx))(t) {
		if !s.Lost {
			t.Errorf("after a restart snapshot %s is not lost", s.LV)
		}
		if _, err := p.CreateVolume(ctx, VolumeSpec{Name: "r", Mode: Block, Source: Source{Kind: FromSnapshot, LV: s.LV}}); !errors.Is(err, ErrLost) {
			t.Errorf("restoring the lost snapshot %s: %v", s.LV, err)
		}
	}
	path = must(p.Activate(ctx, v.LV))(t)
	ok(t, p.DeleteSnapshot(ctx, "older"))
	ok(t, p.DeleteSnapshot(ctx, "newer"))
	waitIdle(t, p)
	s := must(p.CreateSnapshot(ctx, "again", v.LV))(t)
	writeDevice(t, path, 0, make([]byte, 4096))
	if s.Lost || must(p.Snapshot(ctx, "again"))(t).Lost {
		t.Error("a new snapshot is lost too")
	}
	ok(t, p.Deactivate(ctx, v.LV))
}

// lvm runs one of LVM2's commands.
func lvm(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// overrun overwrites the first half of a 64 MiB volume faster than its store grows.
func overrun(t *testing.T, path string) {
	t.Helper()
	for off := int64(0); off < 32<<20; off += 1 << 20 {
		writeDevice(t, path, off, bytes.Repeat([]byte("B"), 1<<20))
	}
}

// late keeps the monitor from a volume's store, as if it came too late.
func late(t *testing.T, p *Pool, lv string) (inTime func()) {
	t.Helper()
	id := must(p.latest())(t).VolumeByLV(lv).Live().LV.ID
	g := &growth{storeID: id}
	g.braked.Store(true)
	p.facts.growing.put(id, g)
	return func() { p.facts.growing.drop(id) }
}

// TestKilledInWindow: a process that dies while a mounted volume is suspended
// leaves it to its successor, which must not wait for the suspended volume.
func TestKilledInWindow(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 64 * size.MiB, Mode: Filesystem, FSType: "ext4"}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	lvm(t, "mkfs.ext4", "-q", "-F", path)
	dir := t.TempDir()
	ok(t, unix.Mount(path, dir, "ext4", 0, ""))
	t.Cleanup(func() { unix.Unmount(dir, 0) })
	ok(t, os.WriteFile(dir+"/x", bytes.Repeat([]byte("x"), 1<<20), 0o600))
	must(p.keys.lock(ctx, lvKey(v.LV)))(t) // for good: the monitor would carry the cut out
	ok(t, p.do(ctx, &change{what: "half a cut", edit: func(e *edit) error {
		_, err := p.cut(e, e.VolumeByLV(v.LV), "snap1")
		return err
	}, act: func(ctx context.Context, w *view) error {
		if err := carryLoaded(ctx, p, w, v.LV); err != nil {
			return err
		}
		return p.dm.Suspend(ctx, w.topDevice(w.VG.LV(v.LV)).name, dm.SuspendOptions{})
	}}))
	ok(t, p.Close())
	p = openPool(t, p.config)
	if n := len(settledTo(t, p, 1)); n != 1 { // nobody was told of the snapshot
		t.Errorf("after the restart: %v", devicesOf(t, p))
	}
	ok(t, os.WriteFile(dir+"/y", []byte("y"), 0o600))
}

// TestElderLeftOnOrigin: an interruption right after the window leaves the
// former newest snapshot on the origin while somebody reads it.
func TestElderLeftOnOrigin(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.FirstStore = 32 * size.MiB })
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 64 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	old := bytes.Repeat([]byte("A"), 65536)
	writeDevice(t, path, 0, old)
	must(p.CreateSnapshot(ctx, "snap1", v.LV))(t)
	dev := p.dm.Node(p.vgName + "-snap1")
	f := must(os.Open(dev))(t)
	must(p.keys.lock(ctx, lvKey(v.LV)))(t) // for good: the monitor would carry the cut out
	ok(t, p.do(ctx, &change{what: "half a cut", edit: func(e *edit) error {
		_, err := p.cut(e, e.VolumeByLV(v.LV), "snap2")
		return err
	}, act: func(ctx context.Context, w *view) error {
		return carryWindow(ctx, p, w, v.LV)
	}}))
	ok(t, p.Close())
	p = openPool(t, p.config)
	must(p.CreateSnapshot(ctx, "snap2", v.LV))(t)
	for off := int64(0); off < 60<<20; off += 1 << 20 {
		writeDevice(t, path, off, bytes.Repeat([]byte("B"), 1<<20))
		time.Sleep(50 * time.Millisecond) // the monitor can keep up
	}
	if got := readDevice(t, dev, 65536); !bytes.Equal(got, old) {
		t.Errorf("the reader of the elder snapshot sees %q", got[:8])
	}
	f.Close()
	must(p.CreateVolume(ctx, VolumeSpec{Name: "r", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "snap1"}}))(t)
	ok(t, p.Deactivate(ctx, v.LV))
}

// TestLossBeforeCut: a store that overflows just before the next cut, or before
// the volume is deactivated, is on record as lost.
func TestLossBeforeCut(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	for _, then := range []string{"cut", "deactivate"} {
		v := must(p.CreateVolume(ctx, VolumeSpec{Name: then, Size: 64 * size.MiB, Mode: Block}))(t)
		path := must(p.Activate(ctx, v.LV))(t)
		s := must(p.CreateSnapshot(ctx, "snap-of-"+then, v.LV))(t)
		inTime := late(t, p, v.LV)
		overrun(t, path)
		if then == "cut" {
			must(p.CreateSnapshot(ctx, "after-"+then, v.LV))(t)
		} else {
			ok(t, p.Deactivate(ctx, v.LV))
		}
		inTime()
		if s := must(p.Snapshot(ctx, s.LV))(t); !s.Lost {
			t.Errorf("%s: the metadata says that all is well: %+v", then, s)
		}
		ok(t, p.Deactivate(ctx, v.LV))
	}
}

// TestLostWhileRestoring: a restore that can never be finished leaves no volume behind.
func TestLostWhileRestoring(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 64 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	s := must(p.CreateSnapshot(ctx, "snap1", v.LV))(t)
	late(t, p, v.LV)
	overrun(t, path)
	if _, err := p.CreateVolume(ctx, VolumeSpec{Name: "r", Mode: Block, Source: Source{Kind: FromSnapshot, LV: s.LV}}); !errors.Is(err, ErrLost) {
		t.Errorf("restoring: %v", err)
	}
	waitIdle(t, p)
	if lv := must(p.latest())(t).VG.LV("r"); lv != nil {
		t.Errorf("the unfinished volume stays: %v", lv.Tags)
	}
	ok(t, p.Deactivate(ctx, v.LV))
}

// TestNameOfOpenSnapshot: a snapshot whose device somebody has open is deleted
// at once, and its name can be used again.
func TestNameOfOpenSnapshot(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 64 * size.MiB, Mode: Block}))(t)
	must(p.Activate(ctx, v.LV))(t)
	must(p.CreateSnapshot(ctx, "snap1", v.LV))(t)
	f := must(os.Open(p.dm.Node(p.vgName + "-snap1")))(t)
	ok(t, p.DeleteSnapshot(ctx, "snap1"))
	must(p.CreateSnapshot(ctx, "snap1", v.LV))(t)
	f.Close()
	waitIdle(t, p)
	if n := len(settledTo(t, p, 4)); n != 4 {
		t.Errorf("after it was closed: %v", devicesOf(t, p))
	}
	ok(t, p.Deactivate(ctx, v.LV))
}

// TestBadSector: trash that cannot be wiped keeps no other from being wiped,
// and people are told.
func TestBadSector(t *testing.T) {
	ctx := context.Background()
	disk := testDisks(t)[0]
	client := must(dm.Open())(t)
	defer client.Close()
	under := must(dm.DeviceOf(disk))(t)
	const length = 1000000
	good := func(from, to size.Sectors) dm.Segment {
		return dm.Segment{Start: from, Length: to - from, Target: dm.Linear{Device: under, Offset: from}}
	}
	info := must(client.Create("baddisk", ""))(t)
	ok(t, client.Load("baddisk", dm.Table{good(0, length)}, false))
	ok(t, client.Resume("baddisk", 0))
	t.Cleanup(func() { lvm(t, "dmsetup", "remove", "--retry", "baddisk") })
	path := must(client.EnsureNode(ctx, "baddisk", info.Device))(t)
	p := openPool(t, Config{Name: "pool", VolumeGroup: "vgbad", Devices: []string{path}, Create: true})
	a := must(p.CreateVolume(ctx, VolumeSpec{Name: "a", Size: 16 * size.MiB, Mode: Block}))(t)
	b := must(p.CreateVolume(ctx, VolumeSpec{Name: "b", Size: 16 * size.MiB, Mode: Block}))(t)
	start := must(p.latest())(t).VG.PVs[0].PEStart
	ok(t, client.Load("baddisk", dm.Table{good(0, start), {Start: start, Length: 8, Target: dm.ErrorTarget{}}, good(start+8, length)}, false))
	ok(t, client.Resume("baddisk", 0))
	ok(t, p.DeleteVolume(ctx, a.LV))
	ok(t, p.DeleteVolume(ctx, b.LV))
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		trash, told := must(p.latest())(t).Trash, len(p.PoolHealth(ctx)) > 0
		if len(trash) == 1 && told {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("trash: %d, health: %v", len(trash), p.PoolHealth(ctx))
		}
	}
	ok(t, p.Close())
}
