package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// fold joins a layer that nobody needs for itself, gone, into the next older layer,
// the heir. The heir's device is stacked over gone's as for any reader, but it is
// writable. The fold reads the chunks that the heir lacks from that device and
// writes them back to it, and the kernel puts them into the heir's store. That
// changes no content at any moment: after an interruption the store merely holds
// more than it must.
//
// The steps are
//
//	count     read both exception tables
//	begin     extend the heir's store, mark it as a superset, create devices
//	copy      copy what the heir lacks, giving way to other I/O
//	commit    the heir takes gone's place in the metadata, gone becomes trash
//	end       the devices follow
//
// After each step the metadata is right, even if the next step never happens. The
// live layer is not folded: its store changes during the fold, and the volume would
// have to be held for the last changes. It can be folded after the next cut.
type fold struct {
	pool *Pool
	catalog.FoldPair
	wanted, held *cow.Chunks // chunks of the heir that gone holds a part of; chunks that the heir holds
	path         string      // of the heir's device
	file         *os.File    // the open heir's device
	cancel       context.CancelCauseFunc
	ended        chan struct{} // closed when run has ended
}

func newFold(p *Pool, pair catalog.FoldPair) *fold {
	return &fold{pool: p, FoldPair: pair, cancel: func(error) {}, ended: make(chan struct{})}
}

// errFoldOver says that the layers cannot be folded now, or never again: one of
// them is needed, in use, or gone.
var errFoldOver = errors.New("cannot be folded now")

const foldLook = 300 * time.Millisecond // longest time that one read of a store may block other operations on the volume

// pair returns the fold's volume and layers.
func (f *fold) pair(v *view) (o *catalog.Volume, heir, gone *catalog.Layer, err error) {
	o, heir, gone = v.Volumes.Get(f.Volume), v.Layers.Get(f.Heir), v.Layers.Get(f.FoldPair.Gone)
	if o == nil || heir == nil || gone == nil {
		return nil, nil, nil, fmt.Errorf("layer %s of volume %s: %w: it was deleted", f.FoldPair.Gone, f.Volume, errFoldOver)
	}
	needed := v.Needed(o)
	if !slices.Contains(needed, gone) || o.Reader(needed, gone) != heir || !v.Foldable(o, heir, gone) {
		return nil, nil, nil, fmt.Errorf("layers %s and %s of volume %s: %w", heir.LV.Name, gone.LV.Name, o.LV.Name, errFoldOver)
	}
	return o, heir, gone, nil
}

// exclusive calls do while no other operation runs on the volume's history.
func (f *fold) exclusive(ctx context.Context, do func() error) error {
	v, err := f.pool.latest()
	if err != nil {
		return err
	}
	o := v.Volumes.Get(f.Volume)
	if o == nil {
		return errFoldOver
	}
	release, err := f.pool.lock(ctx, lvKey(o.LV.Name))
	if err != nil {
		return err
	}
	defer release()
	return do()
}

// count reads which chunks the heir and gone hold.
func (f *fold) count(ctx context.Context) error {
	v, err := f.pool.latest()
	if err != nil {
		return err
	}
	_, heir, gone, err := f.pair(v)
	if err != nil {
		return err
	}
	f.wanted, f.held = cow.NewChunks(heir.Chunk.Bytes(), heir.Length.Bytes()), cow.NewChunks(heir.Chunk.Bytes(), heir.Length.Bytes())
	if err := f.readStore(ctx, heir, func(e cow.Exception) { f.held.Add(e.Origin) }); err != nil {
		return err
	}
	return f.readStore(ctx, gone, func(e cow.Exception) { f.wanted.Cover(e.Origin, gone.Chunk.Bytes()) })
}

// todo returns the chunks that the heir lacks and gone holds.
func (f *fold) todo() *cow.Chunks { return f.wanted.Without(f.held) }

// readStore reads the exceptions of a layer's store. It reads for foldLook at a
// time, so that other operations get access to the volume in between.
func (f *fold) readStore(ctx context.Context, l *catalog.Layer, add func(cow.Exception)) error {
	from := uint64(0)
	for end := false; !end; {
		err := f.look(ctx, l, func(store *cow.Store) error {
			if h, err := store.Header(); err != nil || h.Chunk != l.Chunk.Bytes() {
				return errors.Join(err, fmt.Errorf("the store of %s has chunks of %v, but our tags say %v", l.LV.Name, h.Chunk, l.Chunk.Bytes()))
			}
			limited, cancel := context.WithTimeout(ctx, foldLook)
			defer cancel()
			for e, err := range store.ExceptionsAfter(limited, from) {
				if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
					return nil
				}
				if err != nil {
					return err
				}
				add(e)
				from++
			}
			end = true
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// look calls read with the store of a layer, while no other operation runs on the
// volume's history.
func (f *fold) look(ctx context.Context, l *catalog.Layer, read func(*cow.Store) error) error {
	return f.exclusive(ctx, func() error {
		v, err := f.pool.latest()
		if err != nil {
			return err
		}
		if _, _, _, err := f.pair(v); err != nil {
			return err
		}
		fresh := v.Layers.Get(l.LV.ID)
		if err := readFrozen(v, fresh, read); err != nil {
			return err
		}
		if err := f.pool.refresh(ctx); err != nil {
			return err
		}
		now := f.pool.current.Load()
		if x := now.Layers.Get(l.LV.ID); x == nil || !catalog.SameExtents(v.VG, fresh.LV, now.VG, x.LV) {
			return fmt.Errorf("layer %s: %w: lvm2 changed its store while it was read", fresh.LV.Name, errFoldOver)
		}
		return nil
	})
}

// cost returns how much the fold copies, and how much becomes free.
func (f *fold) cost(v *view, heir, gone *catalog.Layer) foldCost {
	before, after := v.Extents(gone.Used.Bytes()), f.extraExtents(v, heir)
	c := foldCost{copied: size.Bytes(f.todo().Count()) * heir.Chunk.Bytes()}
	if before > after {
		c.freed = size.Bytes(before-after) * v.ExtentSize()
	}
	return c
}

// extraExtents returns by how many extents the heir's store must grow to hold the chunks
// that it lacks.
func (f *fold) extraExtents(v *view, heir *catalog.Layer) lvm2.Extents {
	want := v.Extents((heir.Used + cow.MoreSectors(heir.Chunk.Bytes(), f.todo().Count())).Bytes())
	want = min(want, v.Largest(heir.Store(nil)))
	return max(want, heir.LV.Size()) - heir.LV.Size()
}

// run carries out the fold after count.
func (f *fold) run(ctx context.Context) (err error) {
	defer close(f.ended)
	defer func() { err = errors.Join(err, f.end()) }()
	ctx, f.cancel = context.WithCancelCause(ctx)
	defer f.cancel(nil)
	if err := f.begin(ctx); err != nil {
		return err
	}
	if err := f.copy(ctx, f.giveWay); err != nil {
		return err
	}
	return f.exclusive(ctx, f.commit)
}

// begin gives the heir's store the room that it will need, and creates the heir's
// writable device over gone's.
func (f *fold) begin(ctx context.Context) error {
	return f.exclusive(ctx, func() error {
		f.pool.folder.running.Store(f)
		return f.pool.do(f.pool.ctx, &change{what: "begin to fold a layer", edit: func(t *edit) error {
			o, heir, _, err := f.pair(t.view())
			if err != nil {
				return err
			}
			if info, err := f.pool.find(t.view().snapDevice(heir.LV)); err != nil || info != nil {
				return errors.Join(err, fmt.Errorf("layer %s: %w: it is in use", heir.LV.Name, errFoldOver))
			}
			if err := f.pool.readable(t.view(), o, heir); err != nil {
				return fmt.Errorf("layer %s: %w: %w", heir.LV.Name, errFoldOver, err)
			}
			if !heir.Trimmed {
				return fmt.Errorf("layer %s: %w: its usage is not known", heir.LV.Name, errFoldOver)
			}
			if err := t.Writable(); err != nil {
				return err
			}
			return f.grow(t, heir)
		}, act: func(ctx context.Context, v *view) error {
			o, heir, _, err := f.pair(v)
			if err != nil {
				return err
			}
			if f.path, err = f.pool.chainUp(ctx, v, o, heir); err != nil {
				return err
			}
			if err := f.pool.intact(v, o, heir); err != nil {
				return err
			}
			f.file, err = os.OpenFile(f.path, os.O_RDWR|unix.O_DIRECT, 0)
			return err
		}})
	})
}

// grow extends the heir's store, and marks it as a superset: it will hold more
// chunks than changed until the next cut.
func (f *fold) grow(t *edit, heir *catalog.Layer) error {
	c := heir.Collecting()
	if more := f.extraExtents(t.view(), heir); more > 0 {
		// Live stores must still find room, or snapshots are lost.
		if spare := f.pool.reserve(t.view()) / 2; t.FreeFor(heir.LV).Size() < more+spare {
			return fmt.Errorf("layer %s: %w: its store must grow by %d extents, but only %d are free", heir.LV.Name, errFoldOver, more, t.FreeFor(heir.LV).Size())
		}
		ranges, err := t.Growth(heir.LV, more, catalog.HighEnd)
		if err != nil {
			return err
		}
		c.Segments = catalog.AppendExtents(c.Segments, ranges...)
	}
	return t.Put(c)
}

// commit puts the heir into gone's place. The caller holds the volume's key.
func (f *fold) commit() error {
	return f.pool.do(f.pool.ctx, &change{what: "fold a layer", edit: func(t *edit) error {
		o, heir, gone, err := f.pair(t.view())
		if err != nil {
			return err
		}
		// An I/O error means that the live layer was lost, and all older layers
		// with it.
		if err := errors.Join(f.pool.intact(t.view(), o, heir), t.Writable()); err != nil {
			return err
		}
		if left := f.todo().Count(); left > 0 {
			return fmt.Errorf("layer %s lacks %d chunks of %s", heir.LV.Name, left, gone.LV.Name)
		}
		return t.Folded(heir, gone)
	}})
}

// end removes the fold's devices, whether the fold succeeded or not. Devices in use
// get the tables that the metadata requires.
func (f *fold) end() error {
	var err error
	if f.file != nil {
		err = f.file.Close()
		f.file = nil
	}
	settled := f.exclusive(f.pool.ctx, func() error {
		f.pool.folder.running.CompareAndSwap(f, nil)
		return f.pool.do(f.pool.ctx, &change{what: "remove the devices of a fold", act: func(ctx context.Context, v *view) error {
			if o := v.Volumes.Get(f.Volume); o != nil {
				return f.pool.retire(ctx, v, []string{o.LV.Name})
			}
			return f.pool.sweep(ctx, v)
		}})
	})
	// Clear it also if the metadata could not be read: nothing writes to the heir
	// any more.
	f.pool.folder.running.CompareAndSwap(f, nil)
	switch {
	case f.pool.ctx.Err() != nil: // the pool is closing: no change is carried out, but remove the devices
		settled = f.leave(context.WithoutCancel(f.pool.ctx))
	case settled != nil:
		f.pool.facts.unsettled.put(f.Volume, true)
	}
	return errors.Join(err, settled)
}

// leave removes the fold's devices while the pool is being closed.
func (f *fold) leave(ctx context.Context) error {
	v := f.pool.current.Load() // the last read of the metadata may have been cut short
	o := v.Volumes.Get(f.Volume)
	if o == nil {
		return nil
	}
	return f.pool.converge(ctx, v, o.LV.Name)
}
