//go:build kernel

package pool

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// recorded returns the chunks of a frozen layer that are recorded as changed until the
// next cut, and the other chunks of its store.
func recorded(t *testing.T, p *Pool, name string) (changed, redundant map[uint64]bool) {
	t.Helper()
	v := must(p.latest())(t)
	l := v.Snapshots.Get(name)
	if !l.Exact {
		t.Fatalf("the boundary of %s is not recorded", name)
	}
	changed, redundant = map[uint64]bool{}, map[uint64]bool{}
	// Read the disks: the device of a deep snapshot may lie on a flat store instead.
	ok(t, readFrozen(v, l, func(store *cow.Store) error {
		for e, err := range store.Exceptions(context.Background()) {
			if err != nil {
				return err
			}
			if l.Bound == 0 || e.Store < uint64(l.Bound/l.Chunk) {
				changed[e.Origin] = true
			} else {
				redundant[e.Origin] = true
			}
		}
		return nil
	}))
	return changed, redundant
}

// differing returns the chunks in which two contents differ.
func differing(a, b []byte, chunk size.Bytes) map[uint64]bool {
	out := map[uint64]bool{}
	for i := 0; i < len(a); i += int(chunk) {
		if !bytes.Equal(a[i:i+int(chunk)], b[i:i+int(chunk)]) {
			out[uint64(i)/uint64(chunk)] = true
		}
	}
	return out
}

func waitExact(t *testing.T, p *Pool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		v, left := must(p.latest())(t), 0
		for _, l := range v.Layers.All() {
			if l.Snap == nil && !l.Exact {
				left++
			}
		}
		if left == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the boundaries of %d frozen layers are not recorded", left)
		}
	}
}

// TestExact_underWriters: with two writers, each frozen layer records exactly the
// difference between its snapshot and the next.
func TestExact_underWriters(t *testing.T) {
	const length, chunk, cuts = 32 * size.MiB, 16 * size.KiB, 8
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.FirstStore, c.NoFolding = 64*size.MiB, true })
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: length, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	var stamp atomic.Uint64
	var writers sync.WaitGroup
	var failed [2]error
	stop := make(chan struct{})
	for w := range failed {
		block := directBuffer(t, 4096)
		random := rand.New(rand.NewPCG(uint64(w), 3))
		file := must(os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0))(t)
		writers.Go(func() {
			defer file.Close()
			for failed[w] == nil {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				// Never write the same bytes twice.
				binary.LittleEndian.PutUint64(block, stamp.Add(1))
				_, failed[w] = file.WriteAt(block, random.Int64N(int64(length)/4096)*4096)
			}
		})
	}
	for i := range cuts {
		time.Sleep(300 * time.Millisecond)
		must(p.CreateSnapshot(ctx, fmt.Sprintf("s%d", i), v.LV))(t)
	}
	time.Sleep(300 * time.Millisecond)
	close(stop)
	writers.Wait()
	ok(t, failed[0])
	ok(t, failed[1])
	waitExact(t, p)
	waitTrimmed(t, p)
	contents := make([][]byte, cuts)
	for i := range cuts {
		f := openSnapshot(t, p, fmt.Sprintf("s%d", i))
		contents[i] = readDevice(t, f.Name(), length)
		closeSnapshots(t, p, v.LV, f)
	}
	total, more := 0, 0
	for i := range cuts - 1 {
		changed, redundant := recorded(t, p, fmt.Sprintf("s%d", i))
		want := differing(contents[i], contents[i+1], chunk)
		total, more = total+len(want), more+len(redundant)
		for c := range want {
			if !changed[c] {
				t.Errorf("s%d: chunk %d changed until the next cut, but is not recorded", i, c)
			}
		}
		for c := range changed {
			if !want[c] {
				t.Errorf("s%d: chunk %d is recorded, but did not change until the next cut", i, c)
			}
		}
	}
	if total == 0 {
		t.Error("nothing changed between the cuts")
	}
	t.Logf("%d chunks changed between %d cuts; %d copies were made for the former layer after a cut", total, cuts, more)
	ok(t, p.Deactivate(ctx, v.LV))
}

// TestExact_copiesAfterTheWindow: copies that the former newest layer receives after
// the window, because its device is removed late, do not count as changes. A block
// that is written with the same bytes does.
func TestExact_copiesAfterTheWindow(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.NoFolding = true })
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 32 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	must(p.CreateSnapshot(ctx, "s1", v.LV))(t)
	write := func(chunk int64, b byte) {
		writeDevice(t, path, chunk*16384+4096, bytes.Repeat([]byte{b}, 4096))
	}
	write(3, 1)
	write(5, 0) // the same bytes as before
	for _, reader := range []bool{false, true} {
		name := map[bool]string{false: "s2", true: "s3"}[reader]
		former := map[bool]string{false: "s1", true: "s2"}[reader]
		want := map[bool][]uint64{false: {3, 5}, true: {7, 8, 9}}[reader]
		var open *os.File
		if reader {
			write(9, 9)
			open = must(os.Open(p.dm.Node(p.vgName + "-" + former)))(t)
		}
		release := must(p.keys.lock(ctx, lvKey(v.LV)))(t)
		ok(t, p.do(ctx, &change{what: "a cut that is slow after its window", edit: func(e *edit) error {
			l, err := p.cut(e, e.VolumeByLV(v.LV), name)
			if err != nil {
				return err
			}
			return e.Record(catalog.CutLayer{Layer: l.ID, At: time.Now()}, name)
		}, act: func(ctx context.Context, w *view) error {
			if err := carryWindow(ctx, p, w, v.LV); err != nil {
				return err
			}
			write(7, 7) // both layers copy these
			write(8, 8)
			return p.converge(ctx, w, v.LV)
		}}))
		release()
		waitExact(t, p)
		if reader {
			closeSnapshots(t, p, v.LV, open)
		}
		changed, redundant := recorded(t, p, former)
		var got []uint64
		for c := range changed {
			got = append(got, c)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: chunks %v changed until the next cut, but %v are recorded", former, want, got)
		}
		if !reader && (len(redundant) != 2 || !redundant[7] || !redundant[8]) {
			t.Errorf("%s: the chunks copied after the window are %v, want 7 and 8", former, redundant)
		}
		for _, f := range must(Verify(ctx, p.config, Options{}))(t).Findings {
			t.Errorf("%+v", f)
		}
	}
	ok(t, p.Deactivate(ctx, v.LV))
}

// TestExact_inactiveVolume: a cut of an inactive volume needs no window, and its layer
// is exact.
func TestExact_inactiveVolume(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.NoFolding = true })
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 32 * size.MiB, Mode: Block}))(t)
	must(p.CreateSnapshot(ctx, "s1", v.LV))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	writeDevice(t, path, 1<<20, bytes.Repeat([]byte{1}, 4096))
	ok(t, p.Deactivate(ctx, v.LV))
	must(p.CreateSnapshot(ctx, "s2", v.LV))(t)
	must(p.CreateSnapshot(ctx, "s3", v.LV))(t)
	path = must(p.Activate(ctx, v.LV))(t)
	writeDevice(t, path, 2<<20, bytes.Repeat([]byte{1}, 4096))
	for name, want := range map[string]map[uint64]bool{"s1": {64: true}, "s2": {}} {
		changed, redundant := recorded(t, p, name)
		if fmt.Sprint(changed) != fmt.Sprint(want) || len(redundant) != 0 {
			t.Errorf("%s: %v are recorded and %v are redundant, but %v changed", name, changed, redundant, want)
		}
	}
	// A process that dies before the window leaves no wrong record.
	must(p.keys.lock(ctx, lvKey(v.LV)))(t) // for good: the monitor would carry the cut out
	ok(t, p.do(ctx, &change{what: "a cut", edit: func(e *edit) error {
		_, err := p.cut(e, e.VolumeByLV(v.LV), "s4")
		return err
	}}))
	ok(t, p.Close())
	writeDevice(t, path, 3<<20, bytes.Repeat([]byte{1}, 4096)) // before the cut reaches the kernel
	p = openPool(t, p.config)
	writeDevice(t, path, 4<<20, bytes.Repeat([]byte{1}, 4096))
	waitExact(t, p)
	if changed, _ := recorded(t, p, "s3"); len(changed) != 2 || !changed[128] || !changed[192] {
		t.Errorf("s3: %v are recorded, but 128 and 192 changed", changed)
	}
	ok(t, p.Deactivate(ctx, v.LV))
}
