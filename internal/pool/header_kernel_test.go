//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// forgotten are headers of stores that a disk has not written, but acknowledged: the bytes
// from before.
var forgotten = map[string][]byte{
	"zeroes":  make([]byte, cow.MinChunk),
	"garbage": bytes.Repeat([]byte("garbage!"), int(cow.MinChunk)/8),
}

// forget makes the disk forget the header of a store, which no device may use.
func forget(t *testing.T, v *view, lv *lvm2.LV, header []byte) {
	t.Helper()
	r := must(catalog.Physical(lv))(t)[0]
	writeDevice(t, v.VG.PVs[r.PV].Device, int64(v.VG.Offset(v.VG.PVs[r.PV], r.Start).Bytes()), header)
}

// snappedTwice makes an inactive volume v of 64 MiB whose first byte is 3, with the snapshots
// older and newer, in which it is 1 and 2.
func snappedTwice(t *testing.T, p *Pool) Volume {
	t.Helper()
	ctx := context.Background()
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 64 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	for i, snapshot := range []string{"older", "newer", ""} {
		writeDevice(t, path, 0, bytes.Repeat([]byte{byte(i + 1)}, int(size.MiB)))
		if snapshot != "" {
			must(p.CreateSnapshot(ctx, snapshot, v.LV))(t)
		}
	}
	ok(t, p.Deactivate(ctx, v.LV))
	return v
}

// eachForgotten runs a test for each of the headers in forgotten, in a pool with the volume of
// snappedTwice.
func eachForgotten(t *testing.T, test func(ctx context.Context, t *testing.T, p *Pool, v Volume, header []byte)) {
	for name, header := range forgotten {
		t.Run(name, func(t *testing.T) {
			p := testPool(t, nil)
			test(context.Background(), t, p, snappedTwice(t, p), header)
		})
	}
}

// shows checks the first byte of a volume, and returns the path of its device.
func shows(t *testing.T, p *Pool, lv string, want byte) (path string) {
	t.Helper()
	path = must(p.Activate(context.Background(), lv))(t)
	if got := readDevice(t, path, 4096)[0]; got != want {
		t.Errorf("volume %s begins with %d, want %d", lv, got, want)
	}
	return path
}

// restores restores a snapshot, checks the first byte, and deletes the restored volume.
func restores(t *testing.T, p *Pool, snapshot string, want byte) {
	t.Helper()
	ctx := context.Background()
	r := must(p.CreateVolume(ctx, VolumeSpec{Name: "r-" + snapshot, Mode: Block, Source: Source{Kind: FromSnapshot, LV: snapshot}}))(t)
	shows(t, p, r.LV, want)
	ok(t, p.Deactivate(ctx, r.LV))
	ok(t, p.DeleteVolume(ctx, r.LV))
}

// unrestorable checks that a snapshot is reported lost and that nobody gets its content.
func unrestorable(t *testing.T, p *Pool, snapshot string) {
	t.Helper()
	ctx := context.Background()
	r, err := p.CreateVolume(ctx, VolumeSpec{Name: "r-" + snapshot, Mode: Block, Source: Source{Kind: FromSnapshot, LV: snapshot}})
	if err == nil {
		_, err = p.Activate(ctx, r.LV)
		ok(t, p.DeleteVolume(ctx, r.LV))
	}
	if !errors.Is(err, ErrLost) {
		t.Errorf("restoring snapshot %s returned %v, want ErrLost", snapshot, err)
	}
	if s := must(p.Snapshot(ctx, snapshot))(t); !s.Lost {
		t.Errorf("snapshot %s is not reported lost", snapshot)
	}
}

// TestHeaderLost_newestSnapshot: the volume is usable, and its snapshots are lost for good,
// if the store of the newest one has lost its header.
func TestHeaderLost_newestSnapshot(t *testing.T) {
	eachForgotten(t, func(ctx context.Context, t *testing.T, p *Pool, v Volume, header []byte) {
		now := must(p.latest())(t)
		forget(t, now, now.VG.LV("newer"), header)
		shows(t, p, v.LV, 3)
		for _, s := range []string{"newer", "older"} {
			if !must(p.Snapshot(ctx, s))(t).Lost {
				t.Errorf("snapshot %s is not reported lost when the volume can be used", s)
			}
		}
		unrestorable(t, p, "newer")
		ok(t, p.Deactivate(ctx, v.LV))
		ok(t, p.Close())
		p = openPool(t, p.config)
		path := shows(t, p, v.LV, 3)
		unrestorable(t, p, "older")
		must(p.CreateSnapshot(ctx, "after", v.LV))(t)
		writeDevice(t, path, 0, bytes.Repeat([]byte{4}, 4096))
		restores(t, p, "after", 3)
		for _, s := range []string{"newer", "older", "after"} {
			ok(t, p.DeleteSnapshot(ctx, s))
		}
		shows(t, p, v.LV, 4)
		ok(t, p.Deactivate(ctx, v.LV))
	})
}

// TestHeaderLost_olderSnapshot: only the older snapshot is lost if its store has lost its
// header.
func TestHeaderLost_olderSnapshot(t *testing.T) {
	eachForgotten(t, func(ctx context.Context, t *testing.T, p *Pool, v Volume, header []byte) {
		now := must(p.latest())(t)
		forget(t, now, now.VG.LV("older"), header)
		shows(t, p, v.LV, 3)
		restores(t, p, "newer", 2)
		unrestorable(t, p, "older")
		restores(t, p, "newer", 2)
		shows(t, p, v.LV, 3)
		ok(t, p.Deactivate(ctx, v.LV))
		if must(p.Snapshot(ctx, "newer"))(t).Lost {
			t.Error("the newer snapshot is lost too")
		}
	})
}

// TestHeaderLost_fork: a restored volume whose writes are lost with the header of its store
// is not usable. Its source is, and the snapshot is well.
func TestHeaderLost_fork(t *testing.T) {
	eachForgotten(t, func(ctx context.Context, t *testing.T, p *Pool, v Volume, header []byte) {
		defer p.hydrator.stop("f")()
		f := must(p.CreateVolume(ctx, VolumeSpec{Name: "f", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "newer"}}))(t)
		writeDevice(t, shows(t, p, f.LV, 2), 0, bytes.Repeat([]byte{9}, int(size.MiB)))
		ok(t, p.Deactivate(ctx, f.LV))
		now := must(p.latest())(t)
		for end := time.Now().Add(10 * time.Second); must(p.find(now.cowDevice(now.VolumeByLV(f.LV).Fork.LV)))(t) != nil; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the restored volume keeps its devices")
			}
		}
		forget(t, now, now.VolumeByLV(f.LV).Fork.LV, header)
		if _, err := p.Activate(ctx, f.LV); !errors.Is(err, ErrLost) {
			t.Errorf("activating the restored volume returned %v, want ErrLost", err)
		}
		shows(t, p, v.LV, 3)
		restores(t, p, "newer", 2)
		ok(t, p.DeleteVolume(ctx, f.LV))
		ok(t, p.Deactivate(ctx, v.LV))
	})
}

// TestHeaderLost_neverWritten: a snapshot whose store was never loaded has no header, and is
// not lost.
func TestHeaderLost_neverWritten(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := snappedTwice(t, p)
	must(p.CreateSnapshot(ctx, "s", v.LV))(t)
	restores(t, p, "s", 3)
	writeDevice(t, shows(t, p, v.LV, 3), 0, bytes.Repeat([]byte{4}, 4096))
	restores(t, p, "s", 3)
	restores(t, p, "older", 1)
	ok(t, p.Deactivate(ctx, v.LV))
}

// TestHeaderLost_unreadable: a disk that cannot read a store makes nothing lost. Everything
// is there once the disk can.
func TestHeaderLost_unreadable(t *testing.T) {
	ctx := context.Background()
	disk := newBadDisk(t, testDisks(t)[0])
	p := testPool(t, func(c *Config) { c.Devices = []string{disk.path} })
	v := snappedTwice(t, p)
	now := must(p.latest())(t)
	for _, s := range []string{"older", "newer"} {
		disk.fail(sectorOf(now, now.VG.LV(s), 0), 8)
		r, err := p.CreateVolume(ctx, VolumeSpec{Name: "r", Mode: Block, Source: Source{Kind: FromSnapshot, LV: s}})
		if err == nil {
			_, err = p.Activate(ctx, r.LV)
			ok(t, p.DeleteVolume(ctx, r.LV))
		}
		if err == nil || errors.Is(err, ErrLost) {
			t.Errorf("restoring %s, which cannot be read, returned %v", s, err)
		}
		disk.fail(0, 0)
	}
	shows(t, p, v.LV, 3)
	restores(t, p, "newer", 2)
	restores(t, p, "older", 1)
	ok(t, p.Deactivate(ctx, v.LV))
}

// TestHeaderLost_cutWhileInactive: a cut of an inactive volume does not give a new header to
// the store of the former newest snapshot, which lists chunks.
func TestHeaderLost_cutWhileInactive(t *testing.T) {
	eachForgotten(t, func(ctx context.Context, t *testing.T, p *Pool, v Volume, header []byte) {
		now := must(p.latest())(t)
		forget(t, now, now.VG.LV("newer"), header)
		must(p.CreateSnapshot(ctx, "after", v.LV))(t)
		path := shows(t, p, v.LV, 3)
		writeDevice(t, path, 0, bytes.Repeat([]byte{4}, 4096))
		unrestorable(t, p, "newer")
		unrestorable(t, p, "older")
		restores(t, p, "after", 3)
		ok(t, p.Deactivate(ctx, v.LV))
	})
}
