package pool

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// flatWork is the work of making a flat store. It belongs to one goroutine.
type flatWork struct {
	pool    *Pool
	view    *view            // view in which the layers were chosen
	layers  []*catalog.Layer // layers whose stores are part of the flat store
	flat    *catalog.Flat    // lv is nil until the logical volume is committed
	layout  cow.Flat
	sources []cow.Layer
	made    *lvm2.VG // metadata with the committed logical volume; nil before
	file    *os.File // the device for header and areas
	disks   func()   // closes the disks of sources
}

// close closes the files that write needs. It may be called more than once.
func (w *flatWork) close() {
	w.disks()
	if w.file != nil {
		w.file.Close()
	}
}

const (
	mergesAtOnce = 2       // a merge takes 32 to 64 MiB of memory
	mergeLook    = 1 << 16 // exceptions of a layer between two checks that the layers are unchanged
)

// write writes header and areas durably. The caller holds no key, so the layers' stores may
// get other owners meanwhile; the flat store is then not used. write waits while
// mergesAtOnce other flat stores are being written.
func (w *flatWork) write(ctx context.Context) error {
	defer w.close()
	select {
	case w.pool.merges <- struct{}{}:
		defer func() { <-w.pool.merges }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if _, err := w.layout.Write(w.file, cow.Merge(ctx, w.watched())); err != nil {
		return err
	}
	return os.NewSyscallError("fdatasync", unix.Fdatasync(int(w.file.Fd())))
}

// watched returns the sources with reads that end with errFlatChanged once the layers have
// changed or are gone. The wiper may wait for the extents of such layers.
func (w *flatWork) watched() []cow.Layer {
	var seen atomic.Pointer[view] // the last view in which the layers were unchanged
	look := func() bool {
		now := w.pool.current.Load()
		if now == seen.Load() {
			return true
		}
		if !w.same(now) {
			return false
		}
		seen.Store(now)
		return true
	}
	out := slices.Clone(w.sources)
	for i := range out {
		read := out[i].Read
		out[i].Read = func(ctx context.Context) iter.Seq2[cow.Exception, error] {
			return func(yield func(cow.Exception, error) bool) {
				if !look() {
					yield(cow.Exception{}, errFlatChanged)
					return
				}
				n := 0
				for e, err := range read(ctx) {
					if n++; n%mergeLook == 0 && !look() {
						yield(cow.Exception{}, errFlatChanged)
						return
					}
					if !yield(e, err) {
						return
					}
				}
			}
		}
	}
	return out
}

// sources opens the disks that the stores of layers lie on.
func (p *Pool) sources(v *view, layers []*catalog.Layer) (out []cow.Layer, done func(), err error) {
	on := onDisks{view: v}
	for _, l := range layers {
		store, err := on.store(l.LV, l.Used.Bytes())
		if err != nil {
			on.close()
			return nil, nil, err
		}
		out = append(out, cow.Layer{Chunk: l.Chunk.Bytes(), Length: l.Length, Used: l.Used, Read: store.Exceptions})
	}
	return out, on.close, nil
}

// recordInvalid looks for the layer whose invalid store caused the error why, and records its
// loss. It returns an error in any case. The caller holds the volume's key.
func (p *Pool) recordInvalid(ctx context.Context, w *flatWork, why error) error {
	v, err := p.latest()
	if err != nil {
		return errors.Join(why, err)
	}
	if !w.same(v) { // the read may have seen the data of other owners
		return errFlatChanged
	}
	layers := v.Volumes.Get(w.flat.Of).Path(v.Layers.Get(w.flat.Reads))[:len(w.layers)]
	sources, done, err := p.sources(v, layers)
	if err != nil {
		return errors.Join(why, err)
	}
	defer done()
	for i, s := range sources {
		for _, err := range s.Read(ctx) {
			if !storeLost(err) {
				break
			}
			id := layers[i].LV.ID
			err := p.record(ctx, &unrecordedLoss{id, v})
			if now := p.current.Load().Layers.Get(id); err == nil && (now == nil || !now.Lost) { // it was moved
				return errFlatChanged
			}
			return errors.Join(fmt.Errorf("%w: %w", ErrLost, why), err)
		}
	}
	return why
}
