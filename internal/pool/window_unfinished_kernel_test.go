//go:build kernel

package pool

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestCut_afterUnfinishedCut: a cut whose window failed is followed by another cut
// before it is retried. No former layer stays on the volume's blocks, where it would
// receive copies until its store is full.
func TestCut_afterUnfinishedCut(t *testing.T) {
	for _, read := range []bool{false, true} {
		t.Run(map[bool]string{false: "idle", true: "read"}[read], func(t *testing.T) {
			ctx := context.Background()
			p := testPool(t, nil)
			v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 64 * size.MiB, Mode: Block}))(t)
			path := must(p.Activate(ctx, v.LV))(t)
			old := bytes.Repeat([]byte("A"), 4096)
			writeDevice(t, path, 0, old)
			must(p.CreateSnapshot(ctx, "s1", v.LV))(t)
			var f *os.File
			if read {
				f = must(os.OpenFile(p.dm.Node(p.vgName+"-s1"), os.O_RDONLY|unix.O_DIRECT, 0))(t)
				defer f.Close()
			}
			release := must(p.keys.lock(ctx, lvKey(v.LV)))(t) // so that the caretaker does not finish the cut
			ok(t, p.do(ctx, &change{what: "a cut without its window", edit: func(e *edit) error {
				_, err := p.cut(e, e.VolumeByLV(v.LV), "s2")
				return err
			}, act: func(ctx context.Context, w *view) error {
				return carryLoaded(ctx, p, w, v.LV)
			}}))
			release()
			must(p.CreateSnapshot(ctx, "s3", v.LV))(t)
			want := 4
			if read {
				want = 8
			}
			if n := len(settledTo(t, p, want)); n != want {
				t.Errorf("there are %d devices, want %d: %v", n, want, devicesOf(t, p))
			}
			inTime := late(t, p, v.LV)
			for off := int64(0); off < 7<<20; off += 1 << 20 { // fits into the live store
				writeDevice(t, path, off, bytes.Repeat([]byte("B"), 1<<20))
			}
			inTime()
			if read {
				if got := readDevice(t, f.Name(), 4096); !bytes.Equal(got, old) {
					t.Errorf("the snapshot that stayed open reads %q", got[:8])
				}
				f.Close()
			}
			must(p.CreateVolume(ctx, VolumeSpec{Name: "r", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "s1"}}))(t)
			if got := readDevice(t, must(p.Activate(ctx, "r"))(t), 4096); !bytes.Equal(got, old) {
				t.Errorf("the restored snapshot reads %q", got[:8])
			}
			ok(t, p.Deactivate(ctx, "r"))
			ok(t, p.Deactivate(ctx, v.LV))
		})
	}
}

// TestDown_afterUnfinishedCut: after an interrupted cut the device of the former
// newest layer lies on the volume's own blocks. Its reader does not keep the volume
// from being deactivated, and continues to read.
func TestDown_afterUnfinishedCut(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 64 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	old := bytes.Repeat([]byte("A"), 4096)
	writeDevice(t, path, 0, old)
	must(p.CreateSnapshot(ctx, "s1", v.LV))(t)
	reader := p.dm.Node(p.vgName + "-s1")
	f := must(os.OpenFile(reader, os.O_RDONLY|unix.O_DIRECT, 0))(t)
	defer f.Close()
	writeDevice(t, path, 0, bytes.Repeat([]byte("B"), 4096))
	release := must(p.keys.lock(ctx, lvKey(v.LV)))(t) // so that the monitor does not finish the cut
	ok(t, p.do(ctx, &change{what: "a cut without its window", edit: func(e *edit) error {
		_, err := p.cut(e, e.VolumeByLV(v.LV), "s2")
		return err
	}}))
	ok(t, p.deactivate(ctx, v.LV))
	release()
	if got := readDevice(t, reader, 4096); !bytes.Equal(got, old) {
		t.Errorf("after the deactivation, the snapshot reads %q", got[:8])
	}
	writeDevice(t, must(p.Activate(ctx, v.LV))(t), 0, bytes.Repeat([]byte("C"), 4096))
	if got := readDevice(t, reader, 4096); !bytes.Equal(got, old) {
		t.Errorf("after the next activation, the snapshot reads %q", got[:8])
	}
	f.Close()
	ok(t, p.Deactivate(ctx, v.LV))
}

// TestAbandoned_lostSnapshotInUse: a lost snapshot in use, because lvm2 removed a
// layer that it reads through, blocks neither its volume nor the next cut.
func TestAbandoned_lostSnapshotInUse(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 16 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	must(p.CreateSnapshot(ctx, "s1", v.LV))(t)
	f := must(os.OpenFile(p.dm.Node(p.vgName+"-s1"), os.O_RDONLY|unix.O_DIRECT, 0))(t)
	defer f.Close()
	// The cut of s2 does not reach the kernel, and s2 is gone when the pool is opened again.
	release := must(p.keys.lock(ctx, lvKey(v.LV)))(t) // so that the caretaker does not finish the cut
	ok(t, p.do(ctx, &change{what: "a cut without its devices", edit: func(e *edit) error {
		_, err := p.cut(e, e.VolumeByLV(v.LV), "s2")
		return err
	}}))
	ok(t, p.Close())
	release()
	if out, err := exec.Command("lvremove", "-qq", "-f", p.vgName+"/s2").CombinedOutput(); err == nil {
		t.Errorf("lvremove succeeded beside a reader: %s", out) // it fails after its commit, and leaves the devices
	}
	p = openPool(t, p.config)
	if s := must(p.Snapshot(ctx, "s1"))(t); !s.Lost {
		t.Errorf("the loss of s1 is not recorded: %+v", s)
	}
	must(p.Activate(ctx, v.LV))(t)
	must(p.CreateSnapshot(ctx, "s3", v.LV))(t)
	writeDevice(t, path, 0, bytes.Repeat([]byte("B"), 4096))
	must(p.CreateVolume(ctx, VolumeSpec{Name: "r", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "s3"}}))(t)
	if got := readDevice(t, must(p.Activate(ctx, "r"))(t), 4096); !bytes.Equal(got, make([]byte, 4096)) {
		t.Errorf("the next snapshot reads %q", got[:8])
	}
	f.Close()
	ok(t, p.Deactivate(ctx, "r"))
	ok(t, p.DeleteSnapshot(ctx, "s1"))
	ok(t, p.DeleteSnapshot(ctx, "s3"))
	ok(t, p.Deactivate(ctx, v.LV))
	waitIdle(t, p)
	if left := settledTo(t, p, 0); len(left) != 0 {
		t.Errorf("devices are left: %v", left)
	}
}

// TestCut_expandedWhileSnapshotInUse: a volume that is expanded and then cut while
// only its snapshot is in use works, and so do both snapshots.
func TestCut_expandedWhileSnapshotInUse(t *testing.T) {
	for _, first := range []string{"volume", "snapshot"} { // which is used first afterwards
		t.Run(first, func(t *testing.T) {
			ctx := context.Background()
			p := testPool(t, nil)
			v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 16 * size.MiB, Mode: Block}))(t)
			old := bytes.Repeat([]byte("A"), 4096)
			writeDevice(t, must(p.Activate(ctx, v.LV))(t), 0, old)
			must(p.CreateSnapshot(ctx, "s1", v.LV))(t)
			ok(t, p.Deactivate(ctx, v.LV))
			must(p.CreateVolume(ctx, VolumeSpec{Name: "r1", Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: "s1"}}))(t)
			reader := must(p.Activate(ctx, "r1"))(t)
			must(p.ExpandVolume(ctx, v.LV, 32*size.MiB, 0))(t)
			must(p.CreateSnapshot(ctx, "s2", v.LV))(t)
			must(p.CreateVolume(ctx, VolumeSpec{Name: "r2", Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: "s2"}}))(t)
			use := []func(){
				func() {
					path := must(p.Activate(ctx, v.LV))(t)
					for _, at := range []size.Bytes{0, 24 * size.MiB} {
						writeDevice(t, path, int64(at), bytes.Repeat([]byte("B"), 4096))
					}
				},
				func() {
					second := must(p.Activate(ctx, "r2"))(t)
					if got := readDevice(t, second, 4096); !bytes.Equal(got, old) {
						t.Errorf("the second snapshot reads %q", got[:8])
					}
					if got := readPart(t, second, 24*size.MiB, 4096); !bytes.Equal(got, make([]byte, 4096)) {
						t.Errorf("the second snapshot reads %q in the expanded part", got[:8])
					}
				},
			}
			if first == "snapshot" {
				use[0], use[1] = use[1], use[0]
			}
			for _, f := range append(use, use...) {
				f()
				if got := readDevice(t, reader, 4096); !bytes.Equal(got, old) {
					t.Errorf("the first snapshot reads %q", got[:8])
				}
			}
			noFindings(t, p)
			for _, lv := range []string{"r1", "r2", v.LV} {
				ok(t, p.Deactivate(ctx, lv))
			}
		})
	}
}
