package pool

import (
	"context"
	"errors"
	"iter"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// paperWork returns the work of making a flat store for the oldest of three snapshots,
// without a disk.
func paperWork(g *paperGroup) *flatWork {
	g.volume("vol", 8)
	for _, name := range []string{"s0", "s1", "s2"} {
		g.cut("vol", name, 2)
	}
	for _, name := range []string{"s0", "s1"} {
		c := g.VG.LV(name).Clone()
		c.Tags = catalog.SetTag(c.Tags, "used", "512")
		g.check(g.Put(c))
	}
	o := g.VolumeByLV("vol")
	path := o.Path(g.Snapshots.Get("s0"))
	f := &catalog.Flat{Of: o.LV.ID, Reads: path[0].LV.ID, Over: path[2].LV.ID, Chunk: 128}
	f.LV = catalog.NewFlat(f)
	f.LV.Segments = catalog.AppendExtents(nil, g.take(1))
	g.check(g.Put(f.LV))
	p := newPool(context.Background(), Config{}, Options{})
	p.current.Store(g.view())
	w := &flatWork{pool: p, view: g.view(), layers: g.VolumeByLV("vol").Path(g.Snapshots.Get("s0"))[:2], flat: f, made: g.VG.Clone(), disks: func() {}}
	if !w.same(g.view()) {
		g.Fatal("the work counts as outdated, although nothing has changed")
	}
	return w
}

// TestFlatWrite_endsAfterChange: a merge ends soon after its layers have changed, or
// its own extents were moved: in the middle of a layer, and before the next layer is
// read.
func TestFlatWrite_endsAfterChange(t *testing.T) {
	for name, change := range map[string]func(g *paperGroup, w *flatWork){
		"a layer goes":   func(g *paperGroup, _ *flatWork) { g.drop("s0") },
		"another length": func(g *paperGroup, _ *flatWork) { g.grow("s1", 1) },
		"moved": func(g *paperGroup, w *flatWork) {
			c := g.VG.LVByID(w.flat.LV.ID).Clone()
			c.Segments = catalog.AppendExtents(nil, g.take(1))
			g.check(g.Put(c))
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGroup(t)
			w := paperWork(g)
			read, passed := 0, 0
			all := func(ctx context.Context) iter.Seq2[cow.Exception, error] {
				return func(yield func(cow.Exception, error) bool) {
					for range 3 * mergeLook {
						if read++; read == mergeLook+10 {
							change(g, w)
							w.pool.current.Store(g.view())
						}
						if !yield(cow.Exception{}, nil) {
							return
						}
					}
				}
			}
			w.sources = []cow.Layer{{Read: all}, {Read: all}}
			for _, l := range w.watched() {
				var failed error
				for _, err := range l.Read(context.Background()) {
					passed++
					failed = err
				}
				if !errors.Is(failed, errFlatChanged) {
					t.Fatalf("the merge ends with %v, want errFlatChanged", failed)
				}
			}
			if read != 2*mergeLook || passed != 2*mergeLook+1 {
				t.Errorf("%d exceptions were read, and %d were passed on", read, passed)
			}
		})
	}
}

// TestFlatWrite_concurrentMerges: at most mergesAtOnce merges run. Another merge waits
// until one ends, or until its context ends.
func TestFlatWrite_concurrentMerges(t *testing.T) {
	g := newGroup(t)
	w := paperWork(g)
	w.layout = cow.NewFlat(4*size.KiB, 10)
	none := func(context.Context) iter.Seq2[cow.Exception, error] { return func(func(cow.Exception, error) bool) {} }
	w.sources = []cow.Layer{{Chunk: 4 * size.KiB, Length: 1024, Used: 16, Read: none}}
	open := func() {
		var err error
		if w.file, err = os.OpenFile(filepath.Join(t.TempDir(), "store"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range mergesAtOnce {
		w.pool.merges <- struct{}{}
	}
	open()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.write(ctx) }()
	select {
	case err := <-ended:
		t.Fatalf("one merge too many does not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the cancelled merge returned %v", err)
	}
	<-w.pool.merges
	open()
	if err := w.write(context.Background()); err != nil {
		t.Error(err)
	}
	if len(w.pool.merges) != mergesAtOnce-1 {
		t.Errorf("%d merges count as running", len(w.pool.merges))
	}
}

// TestFlat_tableForgotten: once a flat store's device may get another table, its
// earlier table no longer counts as loaded.
func TestFlat_tableForgotten(t *testing.T) {
	g := newGroup(t)
	w := paperWork(g)
	p, id := w.pool, w.flat.LV.ID
	for _, as := range []bool{true, false} {
		p.facts.tables.put(id, flatTable{length: 3, parts: []*lvm2.LV{w.flat.LV}})
		c := p.convergence(g.view(), "vol", demand{})
		c.asLoaded = map[string]bool{g.view().cowDevice(w.flat.LV).uuid: as}
		c.plan(kernel{})
		if p.facts.tables.has(id) != as {
			t.Errorf("with a table that is loaded as wanted: %v, the table is known: %v", as, !as)
		}
	}
}
