//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

var (
	forksSeed = flag.Uint64("forks.seed", 0, "seed of TestFork_randomOperations; 0 for a random seed")
	forksFor  = flag.Duration("forks.for", 20*time.Second, "duration of TestFork_randomOperations")
)

// forest is a model of volumes and snapshots that are made from each other.
type forest struct {
	t         *testing.T
	p         *Pool
	r         *rand.Rand
	next      int
	volumes   []*forestVolume
	readers   []*forestReader
	snapshots map[string]content
	counts    map[string]int
}

type forestVolume struct {
	lv, path string // path: "" if it is not active
	content
}

func (f *forest) volume() *forestVolume {
	if len(f.volumes) == 0 {
		return nil
	}
	return f.volumes[f.r.IntN(len(f.volumes))]
}

func (f *forest) snapshot() string {
	n := f.r.IntN(max(1, len(f.snapshots)))
	for name := range f.snapshots {
		if n--; n < 0 {
			return name
		}
	}
	return ""
}

func (f *forest) name(kind string) string {
	f.next++
	return fmt.Sprintf("%s%d", kind, f.next)
}

func (f *forest) add(v Volume, c content) {
	c = append(bytes.Clone(c), make(content, int(v.Size)-len(c))...)
	f.volumes = append(f.volumes, &forestVolume{lv: v.LV, content: c})
	f.activate(f.volumes[len(f.volumes)-1])
}

func (f *forest) activate(v *forestVolume) {
	v.path = must(f.p.Activate(context.Background(), v.lv))(f.t)
}

// noRoom reports whether an operation was refused because the pool is full.
func noRoom(err error) bool {
	var pending *PendingError
	return errors.Is(err, ErrNoSpace) || errors.As(err, &pending)
}

// check fails the test if Verify finds a problem.
func (f *forest) check() {
	f.t.Helper()
	noFindings(f.t, f.p)
}

// step runs a random operation and returns its name.
func (f *forest) step() string {
	ctx := context.Background()
	v, s := f.volume(), f.snapshot()
	if f.r.IntN(8) == 0 {
		return f.readerStep(v, s)
	}
	switch n := f.r.IntN(100); {
	case v == nil || n < 4 && len(f.volumes) < 8:
		made := must(f.p.CreateVolume(ctx, VolumeSpec{Name: f.name("v"), Size: 16 * size.MiB, Mode: Block}))(f.t)
		f.add(made, make(content, made.Size))
		return "create"
	case n < 12 && s != "" && len(f.volumes) < 8:
		grown := size.Bytes(len(f.snapshots[s]) + f.r.IntN(2)*8<<20)
		made, err := f.p.CreateVolume(ctx, VolumeSpec{Name: f.name("r"), Size: grown, Mode: Block, Source: Source{Kind: FromSnapshot, LV: s}})
		if noRoom(err) {
			return "restore refused"
		}
		ok(f.t, err)
		f.add(made, f.snapshots[s])
		return "restore"
	case n < 18 && len(f.volumes) < 8:
		made, err := f.p.CreateVolume(ctx, VolumeSpec{Name: f.name("c"), Mode: Block, Source: Source{Kind: FromVolume, LV: v.lv}})
		if noRoom(err) {
			return "clone refused"
		}
		ok(f.t, err)
		f.add(made, v.content)
		return "clone"
	case n < 28 && len(f.snapshots) < 10:
		made := must(f.p.CreateSnapshot(ctx, f.name("s"), v.lv))(f.t)
		f.snapshots[made.LV] = bytes.Clone(v.content)
		return "cut"
	case n < 36 && s != "":
		ok(f.t, f.p.DeleteSnapshot(ctx, s))
		delete(f.snapshots, s)
		return "delete snapshot"
	case n < 42 && len(f.volumes) > 1:
		ok(f.t, f.p.Deactivate(ctx, v.lv))
		ok(f.t, f.p.DeleteVolume(ctx, v.lv))
		for i, x := range f.volumes {
			if x == v {
				f.volumes = append(f.volumes[:i], f.volumes[i+1:]...)
			}
		}
		return "delete volume"
	case n < 46 && len(v.content) < 40<<20:
		grown, err := f.p.ExpandVolume(ctx, v.lv, size.Bytes(len(v.content))+4*size.MiB, 0)
		if noRoom(err) {
			return "expand refused"
		}
		ok(f.t, err)
		v.content = append(v.content, make(content, int(grown.Size)-len(v.content))...)
		return "expand"
	case n < 48 && s != "":
		return f.rollBack(s)
	case n < 50:
		ok(f.t, f.p.Deactivate(ctx, v.lv))
		v.compare(f.t, must(f.p.Activate(ctx, v.lv))(f.t), v.lv+", active again")
		return "activate"
	case n < 52:
		config := f.p.config
		ok(f.t, f.p.Close())
		f.p = openPool(f.t, config)
		return "restart"
	case n < 54:
		f.check()
		return "check"
	case n < 60:
		v.compare(f.t, v.path, v.lv)
		return "compare"
	default:
		v.scribble(f.t, f.r, v.path, 1+f.r.IntN(10))
		return "write"
	}
}

// TestFork_randomOperations: volumes are restored, cloned, snapshotted, grown, deleted
// and written in random order while they are hydrated, and all bytes equal a model.
func TestFork_randomOperations(t *testing.T) {
	seed := *forksSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	p := testPool(t, func(c *Config) { c.HydrationRate = 4 * size.MiB })
	f := &forest{t: t, p: p, r: rand.New(rand.NewPCG(seed, 7)), snapshots: map[string]content{}, counts: map[string]int{}}
	defer func() {
		if f.p != p {
			ok(t, f.p.Close())
		}
	}()
	forks, steps := 0, 0
	for end := time.Now().Add(*forksFor); time.Now().Before(end); steps++ {
		f.counts[f.step()]++
		for _, o := range must(f.p.latest())(t).Volumes.All() {
			if o.Forked() {
				forks++
			}
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d operations", steps)
	t.Logf("%v, %d volumes seen as forks", f.counts, forks)
	for _, v := range f.volumes {
		v.compare(t, v.path, v.lv+" in the end")
	}
	ctx := context.Background()
	f.endReaders()
	for name := range f.snapshots {
		ok(t, f.p.DeleteSnapshot(ctx, name))
	}
	config := f.p.config
	config.HydrationRate = 0
	ok(t, f.p.Close())
	f.p = openPool(t, config)
	for _, v := range f.volumes {
		waitHydrated(t, f.p, v.lv)
		v.compare(t, v.path, v.lv+", hydrated")
	}
	waitIdle(t, f.p)
	f.check()
	if devices := devicesOf(t, f.p); len(devices) != len(f.volumes) {
		t.Errorf("%d hydrated volumes have the devices %v, want one each", len(f.volumes), devices)
	}
	for _, v := range f.volumes {
		ok(t, f.p.Deactivate(ctx, v.lv))
		ok(t, f.p.DeleteVolume(ctx, v.lv))
	}
	waitIdle(t, f.p)
	if left := must(f.p.latest())(t).VG.LVs; len(left) != 0 {
		t.Errorf("%d logical volumes are left; the first is %s %v", len(left), left[0].Name, left[0].Tags)
	}
}
