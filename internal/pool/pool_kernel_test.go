//go:build kernel

package pool

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

var (
	historiesSeed = flag.Uint64("histories.seed", 0, "seed of TestPool_histories; 0 for a random seed")
	historiesFor  = flag.Duration("histories.for", 0, "least duration of TestPool_histories")
)

// TestPool_fourDevices: an active volume with snapshots has exactly the four devices of
// the kernel's snapshot document, and every snapshot has its own content.
func TestPool_fourDevices(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 64 * size.MiB, Mode: Block}))(t)
	if n := len(settledTo(t, p, 0)); n != 0 {
		t.Errorf("a volume that nobody uses has %d devices", n)
	}
	path := must(p.Activate(ctx, v.LV))(t)
	if tables := settledTo(t, p, 1); len(tables) != 1 || !strings.HasPrefix(tables["base"], "0 131072 linear ") {
		t.Errorf("an active volume has the tables %v", tables)
	}
	before := bytes.Repeat([]byte("old content "), 4096/4)[:4096]
	writeDevice(t, path, 0, before)
	for i, name := range []string{"snap1", "snap2", "snap3"} {
		s := must(p.CreateSnapshot(ctx, name, v.LV))(t)
		again := must(p.CreateSnapshot(ctx, name, v.LV))(t)
		if again != s {
			t.Errorf("the repeated request for %s returned %+v, the first %+v", name, again, s)
		}
		tables := devicesOf(t, p)
		real, cow := must(p.dm.Info(p.vgName+"-base-real"))(t), must(p.dm.Info(p.vgName+"-"+name+"-cow"))(t)
		want := map[string]string{
			"base":        fmt.Sprintf("0 131072 snapshot-origin %v", real.Device),
			name:          fmt.Sprintf("0 131072 snapshot %v %v P 32", real.Device, cow.Device),
			"base-real":   tables["base-real"],
			name + "-cow": tables[name+"-cow"],
		}
		if fmt.Sprint(tables) != fmt.Sprint(want) || !strings.Contains(tables["base-real"], " linear ") || !strings.Contains(tables[name+"-cow"], " linear ") {
			t.Errorf("after %d snapshots there are\n%v, want\n%v", i+1, tables, want)
		}
		writeDevice(t, path, 0, bytes.Repeat([]byte{byte('a' + i)}, 4096))
	}
	// Every snapshot has its own content, whether it is the newest or an older one.
	for i, name := range []string{"snap1", "snap2", "snap3"} {
		r := must(p.CreateVolume(ctx, VolumeSpec{Name: "restored-" + name, Mode: Block, Source: Source{Kind: FromSnapshot, LV: name}}))(t)
		got := readDevice(t, must(p.Activate(ctx, r.LV))(t), 4096)
		want := before
		if i > 0 {
			want = bytes.Repeat([]byte{byte('a' + i - 1)}, 4096)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("restored %s begins with %q, want %q", name, got[:16], want[:16])
		}
		ok(t, p.Deactivate(ctx, r.LV))
		ok(t, p.DeleteVolume(ctx, r.LV))
	}
	if n := len(settledTo(t, p, 4)); n != 4 {
		t.Errorf("after the restores, the devices are %v", devicesOf(t, p))
	}
	// Delete the middle snapshot first: its layer must stay for the oldest
	// snapshot.
	for _, name := range []string{"snap2", "snap1", "snap3"} {
		ok(t, p.DeleteSnapshot(ctx, name))
	}
	waitIdle(t, p)
	if tables := settledTo(t, p, 1); len(tables) != 1 || !strings.HasPrefix(tables["base"], "0 131072 linear ") {
		t.Errorf("without snapshots, the tables are %v", tables)
	}
	ok(t, p.Deactivate(ctx, v.LV))
	ok(t, p.DeleteVolume(ctx, v.LV))
	waitIdle(t, p)
	if c := must(p.latest())(t); len(c.VG.LVs) != 0 || len(settledTo(t, p, 0)) != 0 {
		t.Errorf("%d logical volumes are left, and the devices %v", len(c.VG.LVs), devicesOf(t, p))
	}
}

// TestPool_histories: while volumes are written, cut, grown and restored, and snapshots
// deleted and folded, in random order, every snapshot equals a model in memory. The
// pool is closed and opened in between. Snapshots outlive their volume.
func TestPool_histories(t *testing.T) {
	const block = 4096
	ctx := context.Background()
	c := Config{Name: "pool", VolumeGroup: "vghistories", Devices: testDisks(t)[:1], Create: true, FirstStore: 4 * size.MiB, NoFolding: true}
	p := openPool(t, c)
	seed := cmp.Or(*historiesSeed, uint64(time.Now().UnixNano()))
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	type snapshot struct {
		lv      string
		content []byte
	}
	type vol struct {
		lv, path  string
		content   []byte
		snapshots []snapshot
	}
	var vols []*vol
	for i := range 2 {
		v := must(p.CreateVolume(ctx, VolumeSpec{Name: fmt.Sprintf("v%d", i), Size: 16 * size.MiB, Mode: Block}))(t)
		vols = append(vols, &vol{lv: v.LV, path: must(p.Activate(ctx, v.LV))(t), content: make([]byte, 16*size.MiB)})
	}
	check := func(s snapshot, what string) {
		t.Helper()
		n := fmt.Sprintf("check-%d", r.Uint32())
		cp := must(p.CreateVolume(ctx, VolumeSpec{Name: n, Mode: Block, Source: Source{Kind: FromSnapshot, LV: s.lv}}))(t)
		got := readDevice(t, must(p.Activate(ctx, cp.LV))(t), cp.Size)
		if !bytes.Equal(got[:len(s.content)], s.content) {
			for i := 0; i < len(s.content); i += block {
				if !bytes.Equal(got[i:i+block], s.content[i:i+block]) {
					t.Fatalf("seed %d: %s: snapshot %s has other content at block %d", seed, what, s.lv, i/block)
				}
			}
		}
		ok(t, p.Deactivate(ctx, cp.LV))
		ok(t, p.DeleteVolume(ctx, cp.LV))
	}
	steps, end := 0, time.Now().Add(*historiesFor)
	for ; steps < 120 || time.Now().Before(end); steps++ {
		step := steps
		v := vols[r.IntN(len(vols))]
		switch k := r.IntN(20); {
		case k < 9:
			for range 1 + r.IntN(20) {
				data := bytes.Repeat([]byte{byte(r.Uint32()), byte(step)}, block/2)
				off := r.IntN(len(v.content)/block) * block
				writeDevice(t, v.path, int64(off), data)
				copy(v.content[off:], data)
			}
		case k < 13 && len(v.snapshots) < 6:
			s := must(p.CreateSnapshot(ctx, fmt.Sprintf("s%d", step), v.lv))(t)
			v.snapshots = append(v.snapshots, snapshot{s.LV, bytes.Clone(v.content)})
		case k < 15 && len(v.snapshots) > 0:
			i := r.IntN(len(v.snapshots))
			ok(t, p.DeleteSnapshot(ctx, v.snapshots[i].lv))
			v.snapshots = append(v.snapshots[:i:i], v.snapshots[i+1:]...)
			if r.IntN(2) == 0 {
				foldAll(t, p)
			}
		case k < 17 && len(v.snapshots) > 0:
			check(v.snapshots[r.IntN(len(v.snapshots))], fmt.Sprintf("step %d", step))
		case k == 17 && len(v.content) < int(40*size.MiB):
			grown := must(p.ExpandVolume(ctx, v.lv, size.Bytes(len(v.content))+4*size.MiB, 0))(t)
			v.content = append(v.content, make([]byte, int(grown.Size)-len(v.content))...)
		case k == 18:
			ok(t, p.Deactivate(ctx, v.lv))
			v.path = must(p.Activate(ctx, v.lv))(t)
		case k == 19:
			ok(t, p.Close())
			p = openPool(t, c)
		}
	}
	t.Logf("%d operations", steps)
	for _, v := range vols {
		if got := readDevice(t, v.path, size.Bytes(len(v.content))); !bytes.Equal(got, v.content) {
			t.Errorf("seed %d: volume %s has other content", seed, v.lv)
		}
		for _, s := range v.snapshots {
			check(s, "at the end")
		}
		ok(t, p.Deactivate(ctx, v.lv))
		ok(t, p.DeleteVolume(ctx, v.lv)) // snapshots outlive their volume
		for _, s := range v.snapshots {
			check(s, "after its volume was deleted")
			ok(t, p.DeleteSnapshot(ctx, s.lv))
		}
	}
	waitIdle(t, p)
	if v := must(p.latest())(t); len(v.VG.LVs) != 0 || len(settledTo(t, p, 0)) != 0 {
		t.Errorf("%d logical volumes are left, and the devices %v", len(v.VG.LVs), devicesOf(t, p))
	}
	vgck(t, c.VolumeGroup)
}

// TestCreateVolume_earlierOwner: a new or grown block volume shows nothing of the earlier
// content of its extents, neither of a deleted volume nor from before the pool.
func TestCreateVolume_earlierOwner(t *testing.T) {
	ctx := context.Background()
	secret := bytes.Repeat([]byte("SECRET! "), int(4*size.MiB)/8)
	var vgDisk string
	p := testPool(t, func(c *Config) {
		vgDisk = c.Devices[0]
		f, err := os.OpenFile(vgDisk, os.O_WRONLY, 0)
		ok(t, err)
		for off := 36 * size.MiB; off < 200*size.MiB; off += 4 * size.MiB {
			_, err := f.WriteAt(secret, int64(off))
			ok(t, err)
		}
		ok(t, f.Sync())
		f.Close()
	})
	clean := func(name string, length size.Bytes) {
		t.Helper()
		v := must(p.CreateVolume(ctx, VolumeSpec{Name: name, Size: length, Mode: Block}))(t)
		path := must(p.Activate(ctx, v.LV))(t)
		if at := firstByte(t, path, 0, length); at >= 0 {
			t.Errorf("%s shows an earlier owner's bytes at %d", name, at)
		}
		for off := size.Bytes(0); off < length; off += 4 * size.MiB {
			writeDevice(t, path, int64(off), secret)
		}
		must(p.CreateSnapshot(ctx, "s-"+name, v.LV))(t)
		writeDevice(t, path, 0, make([]byte, 4*size.MiB)) // puts secrets into the store too
		ok(t, p.DeleteSnapshot(ctx, "s-"+name))
		grown := must(p.ExpandVolume(ctx, v.LV, length+32*size.MiB, 0))(t)
		if at := firstByte(t, path, length, grown.Size); at >= 0 {
			t.Errorf("the grown %s shows an earlier owner's bytes at %d", name, at)
		}
		ok(t, p.Deactivate(ctx, v.LV))
		ok(t, p.DeleteVolume(ctx, v.LV))
	}
	clean("first", 96*size.MiB)
	clean("second", 128*size.MiB)
	waitIdle(t, p)
	clean("third", 160*size.MiB)
}

// TestCapacity_reserve: a volume of MaxVolume leaves the reserve to snapshots.
// CreateVolume waits until the extents of a deleted volume are wiped, and uses them.
func TestCapacity_reserve(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	c := must(p.Capacity(ctx))(t)
	if _, err := p.CreateVolume(ctx, VolumeSpec{Name: "big", Size: c.MaxVolume + 1, Mode: Block}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("CreateVolume of more than MaxVolume returned %v", err)
	}
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "all", Size: c.MaxVolume, Mode: Block}))(t)
	if left := must(p.Capacity(ctx))(t); left.MaxVolume != 0 {
		t.Errorf("in a full pool, MaxVolume is %v", left.MaxVolume)
	}
	if _, err := p.ExpandVolume(ctx, v.LV, v.Size+1, 0); !errors.Is(err, ErrNoSpace) {
		t.Errorf("ExpandVolume in a full pool returned %v", err)
	}
	must(p.CreateSnapshot(ctx, "in-reserve", v.LV))(t) // the reserve is for snapshots
	ok(t, p.DeleteSnapshot(ctx, "in-reserve"))
	ok(t, p.DeleteVolume(ctx, v.LV))
	must(p.CreateVolume(ctx, VolumeSpec{Name: "all", Size: c.MaxVolume, Mode: Block}))(t)
}

// TestDeleteVolume_inUse: an open volume is neither deleted nor deactivated, and nothing
// changes. A closed active volume is deleted, and a repeated delete succeeds.
func TestDeleteVolume_inUse(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 16 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	v = must(p.Volume(ctx, v.LV))(t) // the activation has changed it
	f := must(os.Open(path))(t)
	for name, err := range map[string]error{"delete": p.DeleteVolume(ctx, v.LV), "deactivate": p.Deactivate(ctx, v.LV)} {
		if !errors.Is(err, ErrInUse) {
			t.Errorf("%s of an open volume returned %v", name, err)
		}
	}
	if len(settledTo(t, p, 1)) != 1 || must(p.Volume(ctx, v.LV))(t) != v {
		t.Error("a refused delete changed the volume or its devices")
	}
	f.Close()
	ok(t, p.DeleteVolume(ctx, v.LV))
	ok(t, p.DeleteVolume(ctx, v.LV))
	if _, err := p.Volume(ctx, v.LV); !errors.Is(err, ErrNotFound) {
		t.Errorf("Volume after the delete returned %v", err)
	}
}

// TestOpen_secondProcess: a second Open of a pool waits until the first pool is closed,
// or its context ends.
func TestOpen_secondProcess(t *testing.T) {
	p := testPool(t, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if q, err := Open(ctx, p.config, Options{}); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("a second Open returned %v, %v", q, err)
	}
	ok(t, p.Close())
	openPool(t, p.config)
}

// TestCreateSnapshot_inactive: snapshots of an inactive volume need no devices. They are
// trimmed, and have their content after later writes.
func TestCreateSnapshot_inactive(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 64 * size.MiB, Mode: Block}))(t)
	content := bytes.Repeat([]byte("A"), 65536)
	writeDevice(t, must(p.Activate(ctx, v.LV))(t), 0, content)
	ok(t, p.Deactivate(ctx, v.LV))
	for _, name := range []string{"s1", "s2", "s3"} {
		must(p.CreateSnapshot(ctx, name, v.LV))(t)
	}
	if n := len(settledTo(t, p, 0)); n != 0 {
		t.Errorf("after the snapshots, the devices are %v, want none", devicesOf(t, p))
	}
	waitTrimmed(t, p)
	writeDevice(t, must(p.Activate(ctx, v.LV))(t), 0, bytes.Repeat([]byte("B"), 65536))
	for _, name := range []string{"s1", "s2", "s3"} {
		r := must(p.CreateVolume(ctx, VolumeSpec{Name: "r" + name, Mode: Block, Source: Source{Kind: FromSnapshot, LV: name}}))(t)
		if got := readDevice(t, must(p.Activate(ctx, r.LV))(t), 65536); !bytes.Equal(got, content) {
			t.Errorf("%s begins with %q", name, got[:4])
		}
		ok(t, p.Deactivate(ctx, r.LV))
	}
	ok(t, p.Deactivate(ctx, v.LV))
}

// waitTrimmed waits until no frozen store has an unused end.
func waitTrimmed(t *testing.T, p *Pool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		v, left := must(p.latest())(t), 0
		for _, l := range v.Layers.All() {
			if l.Snap == nil && !l.Trimmed {
				left++
			}
		}
		if left == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d frozen layers are not trimmed", left)
		}
	}
}
