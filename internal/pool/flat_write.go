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

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// flatWork is a flat store that is being made. One goroutine has it.
type flatWork struct {
	pool    *Pool
	view    *view    // in which the layers were looked at
	layers  []*layer // the stores that are parts of it
	flat    *flat    // without lv until that is committed
	layout  cow.Flat
	sources []cow.Layer
	made    *lvm2.VG // in which the logical volume was committed; nil before
	file    *os.File // the device that header and areas are written to
	disks   func()   // closes the disks that sources reads
}

// close closes what write needs. It may be called again.
func (w *flatWork) close() {
	w.disks()
	if w.file != nil {
		w.file.Close()
	}
}

const (
	mergesAtOnce = 2       // a merge takes 32 to 64 MiB of memory
	mergeLook    = 1 << 16 // exceptions of a layer between two looks whether they are still of use
)

// write writes header and areas, which are on the disk then. No key is held: the
// stores may have other owners by now, and then what is written is not used. It waits
// until few others are being written.
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

// watched are the sources, whose reads end with an error once what is made of them is of
// no use: the layers are not what they were, or gone, and the wiper waits for them.
func (w *flatWork) watched() []cow.Layer {
	var seen atomic.Pointer[view] // in which they were as they were
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
func (p *Pool) sources(v *view, layers []*layer) (out []cow.Layer, done func(), err error) {
	on := onDisks{view: v}
	for _, l := range layers {
		store, err := on.store(l.lv, l.used.Bytes())
		if err != nil {
			on.close()
			return nil, nil, err
		}
		out = append(out, cow.Layer{Chunk: l.chunk.Bytes(), Length: l.length, Used: l.used, Read: store.Exceptions})
	}
	return out, on.close, nil
}

// recordInvalid writes down which layer the kernel had given up, unnoticed until
// now, and returns why, an error. The volume's key is held.
func (p *Pool) recordInvalid(ctx context.Context, w *flatWork, why error) error {
	v, err := p.latest()
	if err != nil {
		return errors.Join(why, err)
	}
	if !w.same(v) { // it was read in what is another's now
		return errFlatChanged
	}
	layers := v.volumes[w.flat.of].path(v.layers[w.flat.reads])[:len(w.layers)]
	sources, done, err := p.sources(v, layers)
	if err != nil {
		return errors.Join(why, err)
	}
	defer done()
	for i, s := range sources {
		for _, err := range s.Read(ctx) {
			if !errors.Is(err, cow.ErrInvalid) {
				break
			}
			id := layers[i].lv.ID
			err := p.record(ctx, &unrecordedLoss{id, v})
			if now := p.current.Load().layers[id]; err == nil && (now == nil || !now.lost) { // it was moved
				return errFlatChanged
			}
			return errors.Join(fmt.Errorf("%w: %w", ErrLost, why), err)
		}
	}
	return why
}
