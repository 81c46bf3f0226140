//go:build kernel

package pool

import (
	"bytes"
	"context"
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

// TestCut_interrupted: after a process dies between the commit of a cut and its
// ioctls, or inside the window, the next process finishes the cut. The snapshot before
// it keeps its content.
func TestCut_interrupted(t *testing.T) {
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
			t.Errorf("%s: the snapshot before the interrupted cut reads %q", at, got)
		}
		ok(t, p.Deactivate(ctx, r.LV))
		if n := len(settledTo(t, p, 4)); n != 4 {
			t.Errorf("%s: the devices are %v, want four", at, devicesOf(t, p))
		}
	}
	ok(t, p.Deactivate(ctx, v.LV))
}

// TestCut_underReader: repeated cuts move the device of an older snapshot below the
// new layer while the snapshot is read, and its reader does not notice.
func TestCut_underReader(t *testing.T) {
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
			dev, err = p.chainUp(ctx, w, w.Volumes.Get(l.Of), l)
			return err
		}}))
		readers = append(readers, open{dev, must(os.OpenFile(dev, os.O_RDONLY|unix.O_DIRECT, 0))(t), want})
		release()
		for j, o := range readers {
			if got := readDevice(t, o.dev, length); !bytes.Equal(got, o.want) {
				t.Fatalf("after cut %d, snapshot %d has other content", i, j)
			}
		}
	}
	if n := len(settledTo(t, p, 2+2*5)); n != 2+2*5 {
		t.Errorf("with five open snapshots there are %d devices: %v", n, devicesOf(t, p))
	}
	for _, o := range readers {
		o.f.Close()
	}
	must(p.CreateSnapshot(ctx, "last", v.LV))(t)
	ok(t, p.Close())
	p = openPool(t, p.config) // a new process removes devices that nobody reads
	if n := len(settledTo(t, p, 4)); n != 4 {
		t.Errorf("without open snapshots there are %d devices: %v", n, devicesOf(t, p))
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

// late keeps the monitor from extending a volume's store until inTime is called.
func late(t *testing.T, p *Pool, lv string) (inTime func()) {
	t.Helper()
	id := must(p.latest())(t).VolumeByLV(lv).Live().LV.ID
	g := &growth{storeID: id}
	g.braked.Store(true)
	p.facts.growing.put(id, g)
	return func() { p.facts.growing.drop(id) }
}

// TestCut_killedInWindow: after a process dies while a mounted volume is suspended,
// the next process opens the pool, resumes the volume, and removes the layer of the cut.
func TestCut_killedInWindow(t *testing.T) {
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
	if n := len(settledTo(t, p, 1)); n != 1 { // CreateSnapshot never returned the snapshot
		t.Errorf("after the restart, the devices are %v, want one", devicesOf(t, p))
	}
	ok(t, os.WriteFile(dir+"/y", []byte("y"), 0o600))
}

// TestSettle_formerNewestLeftOnOrigin: an interruption directly after the window
// leaves the former newest snapshot on the origin while it is read; the next process
// moves it.
func TestSettle_formerNewestLeftOnOrigin(t *testing.T) {
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
		time.Sleep(50 * time.Millisecond) // slow enough for the monitor
	}
	if got := readDevice(t, dev, 65536); !bytes.Equal(got, old) {
		t.Errorf("the older snapshot reads %q", got[:8])
	}
	f.Close()
	must(p.CreateVolume(ctx, VolumeSpec{Name: "r", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "snap1"}}))(t)
	ok(t, p.Deactivate(ctx, v.LV))
}
