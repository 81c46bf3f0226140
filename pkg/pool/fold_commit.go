package pool

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// handOver copies the rest of what the heir lacks. If gone is the live layer that
// is done while the volume is held, and the heir is made a snapshot of the
// volume's own blocks beside gone: from then on both collect what is overwritten,
// so that either is complete and a commit that never comes does no harm. The
// volume's key is held.
func (f *fold) handOver() error {
	return f.do(f.ctx, &change{what: "copy the rest of a layer to its heir", edit: f.room, act: func(ctx context.Context, v *view) error {
		o, heir, gone, err := f.pair(v)
		if err != nil {
			return err
		}
		// A cut that was committed meanwhile may not have reached the kernel.
		if _, err := f.chainUp(ctx, v, o, heir); err != nil {
			return err
		}
		vol := v.topDevice(o.lv)
		top, err := f.find(vol)
		if err != nil {
			return err
		}
		store, err := cow.Open(f.dm.Node(v.cowDevice(gone.lv).name))
		if err != nil {
			return err
		}
		inside := func() error {
			if err := f.catchUp(ctx, heir, gone, store); err != nil || gone.snap == nil {
				return err
			}
			return f.switchOver(ctx, v, o, heir)
		}
		if gone.snap != nil && top != nil && top.Live {
			began := time.Now()
			err = f.swap(ctx, vol, top.Suspended, dm.SuspendOptions{SkipLockFS: true}, inside)
			klog.FromContext(ctx).V(2).Info("Volume was held to fold its newest layer", "volume", o.lv.Name, "for", time.Since(began), "chunks", f.held.Count())
		} else {
			err = inside() // gone's store does not change
		}
		return errors.Join(err, store.Close())
	}})
}

// room extends the heir's store once more if it is to become the live one: what
// the volume's writers did since the fold began has used what it had left. The
// device follows with its chain.
func (f *fold) room(t *edit) error {
	_, heir, gone, err := f.pair(t.view)
	if err != nil || gone.snap == nil {
		return err
	}
	s, err := f.snapshotStatus(t.snapDevice(heir.lv).name)
	if err != nil {
		return err
	}
	rest := f.todo().Count() + uint64(foldLast/heir.chunk.Bytes())
	want := t.extents((s.Used + cow.MoreSectors(heir.chunk.Bytes(), rest)).Bytes()) + f.spare(t.view, heir, gone)
	if want = min(want, t.largest(heir.store(nil))); want <= heir.lv.Size() {
		return nil
	}
	return f.extend(t, heir, heir.lv.Clone(), want-heir.lv.Size())
}

// catchUp copies what gone's store has got since it was read.
func (f *fold) catchUp(ctx context.Context, heir, gone *layer, store *cow.Store) error {
	for e, err := range store.ExceptionsAfter(ctx, f.read) {
		if err != nil {
			return err
		}
		f.wanted.Cover(e.Origin, gone.chunk.Bytes())
		f.read++
	}
	todo := f.todo()
	if size.Bytes(todo.Count())*heir.chunk.Bytes() > foldLast {
		return fmt.Errorf("layer %s: %w: %d chunks have come to it meanwhile", gone.lv.Name, errFoldOver, todo.Count())
	}
	return f.copy(ctx, todo, func(context.Context) error { return nil })
}

// switchOver gives the heir the table of a live layer. Only now may that be
// loaded: the kernel reads the store when it is.
func (f *fold) switchOver(ctx context.Context, v *view, o *volume, heir *layer) error {
	if err := f.intact(v, o, heir); err != nil {
		return err
	}
	dev := v.snapDevice(heir.lv)
	table, err := f.liveTable(v, o, heir)
	if err != nil {
		return err
	}
	if err := f.dm.Load(dev.name, table, false); err != nil {
		return err
	}
	return f.swapTable(ctx, dev, false)
}

// liveTable is the table of a layer's device when the layer is live.
func (f *fold) liveTable(v *view, o *volume, l *layer) (dm.Table, error) {
	real, err := f.find(v.realDevice(o.lv))
	if err != nil {
		return nil, err
	}
	store, err := f.find(v.cowDevice(l.lv))
	if err != nil {
		return nil, err
	}
	if real == nil || store == nil {
		return nil, fmt.Errorf("layer %s of volume %s: its devices are gone", l.lv.Name, o.lv.Name)
	}
	return whole(l.length, dm.Snapshot{Origin: real.Device, COW: store.Device, Persistence: dm.Persistent, Chunk: l.chunk}), nil
}

// commit puts the heir into gone's place. The volume's key is held since handOver.
func (f *fold) commit() error {
	return f.do(f.ctx, &change{what: "fold a layer", edit: func(t *edit) error {
		o, heir, gone, err := f.pair(t.view)
		if err != nil {
			return err
		}
		// An I/O error means that the live layer died, and with it all older ones.
		if err := errors.Join(f.intact(t.view, o, heir), t.writable()); err != nil {
			return err
		}
		if left := f.todo().Count(); left > 0 {
			return fmt.Errorf("layer %s lacks %d chunks of %s", heir.lv.Name, left, gone.lv.Name)
		}
		c := heir.lv.Clone()
		c.Tags = setTag(dropTags(c.Tags, tagUsed), tagThrough, strconv.FormatUint(gone.through, 10))
		if gone.over > 0 { // what gone read through is what the heir reads through now
			c.Tags = setTag(c.Tags, tagOver, strconv.FormatUint(gone.over, 10))
		}
		if gone.snap == nil {
			return errors.Join(t.put(c), t.discard(gone.lv))
		}
		if err := f.isLive(t.view, o, heir); err != nil {
			return err
		}
		c.Status, c.Flags = []string{lvm2.StatusRead, lvm2.StatusWrite}, nil
		if o.forked() {
			handOff(c)
		}
		if err := errors.Join(t.put(c), t.discard(gone.lv)); err != nil {
			return err
		}
		return t.join(o, c, heir.length.Bytes(), heir.chunk)
	}})
}

// isLive checks that the heir's device is what handOver has made it: somebody
// may have used dmsetup or lvm2 since.
func (f *fold) isLive(v *view, o *volume, heir *layer) error {
	want, err := f.liveTable(v, o, heir)
	if err != nil {
		return err
	}
	info, err := f.find(v.snapDevice(heir.lv))
	if err != nil {
		return err
	}
	if info == nil || !info.Live || info.Suspended {
		return fmt.Errorf("layer %s: %w: its device does not run", heir.lv.Name, errFoldOver)
	}
	have, err := f.dm.Table(info.Name)
	if err != nil {
		return err
	}
	if !have.Equal(want) {
		return fmt.Errorf("layer %s: %w: its device was changed", heir.lv.Name, errFoldOver)
	}
	return nil
}
