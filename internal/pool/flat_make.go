package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// flatWait is how long a flat store stays that nobody has read by yet, if there is a
// volume for which it was made: who asked may have left meanwhile, and asks again.
// Without one it stays for flatSoon, until who has made it reads by it.
const (
	flatWait = 5 * time.Minute
	flatSoon = 5 * time.Second
)

// flattenBelow sees to it that what lv reads through can be read by few devices,
// before they are made. The caller must not have lv's key: to make a flat store takes
// as long as its layers' lists are long. Where none can be made a stack of devices
// does as well, up to what the kernel can read through: only beyond that it is an error.
func (p *Pool) flattenBelow(ctx context.Context, lv string) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	for _, name := range v.family(lv) {
		o := v.volumeByLV(name)
		if o == nil {
			continue
		}
		l := v.layers[o.from()]
		if l == nil || v.circular(o) != nil {
			continue
		}
		err := p.flattenLayer(ctx, l.of, l.lv.ID)
		if errors.Is(err, ErrPrecondition) && p.tooDeep(l) && p.folder.stop(ctx, l.of) {
			err = p.flattenLayer(ctx, l.of, l.lv.ID)
		}
		switch {
		case err == nil:
		case ctx.Err() != nil || p.tooDeep(l):
			return fmt.Errorf("snapshot %s/%s: %w", v.vg.Name, l.lv.Name, err)
		default:
			p.log.V(2).Info("An old snapshot is read by a device for each newer one: no store of its own could be made", "volumeGroup", p.vgName, "snapshot", l.lv.Name, "why", err)
		}
	}
	return nil
}

// tooDeep reports whether the kernel could not read l as it is now.
func (p *Pool) tooDeep(l *layer) bool {
	v, err := p.latest()
	if err != nil {
		return true
	}
	o, now := v.volumes[l.of], v.layers[l.lv.ID]
	return o != nil && now != nil && v.depth(o, now) > p.deepest
}

// flattenLayer makes a flat store for a layer that is read by more than flatLevels
// devices, or would be. The store is made to the end also if the caller leaves, and
// who asks meanwhile waits for the same one. The volume's key must not be held.
func (p *Pool) flattenLayer(ctx context.Context, volume, layer lvm2.ID) error {
	if _, _, l, err := p.steep(volume, layer); err != nil || l == nil {
		return err
	}
	_, err := run(ctx, &p.group, []string{flatKey(layer)}, func(ctx context.Context) (none struct{}, err error) {
		return none, p.makeFlat(ctx, volume, layer)
	})
	return err
}

// steep finds the layer if it needs a flat store: l is nil if it does not.
func (p *Pool) steep(volume, layer lvm2.ID) (v *view, o *volume, l *layer, err error) {
	if v, err = p.latest(); err != nil {
		return nil, nil, nil, err
	}
	o, l = v.volumes[volume], v.layers[layer]
	if o == nil || l == nil || o.theirs() != "" || len(v.route(o, l)) <= flatLevels {
		return v, o, nil, nil
	}
	for _, x := range o.path(l) {
		if x.lost {
			return v, o, nil, nil // and that is said where it is read
		}
	}
	return v, o, l, nil
}

// makeFlat makes a flat store for a layer. The volume's key is held only to add the
// logical volume and to record that the store is written, not while the layers' lists
// are read and merged: their stores do not change, and that they are as they were is
// looked at in the end. An interruption leaves a logical volume that counts as not
// written, and goes. The layer's flatKey is held.
func (p *Pool) makeFlat(ctx context.Context, volume, layer lvm2.ID) error {
	v, o, l, err := p.steep(volume, layer)
	if err != nil || l == nil {
		return err
	}
	began := time.Now()
	var w *flatWork
	whole := context.WithoutCancel(ctx) // what is begun is waited for, also when the pool is closed: w has open files
	err = p.onVolume(whole, o.lv.Name, func(ctx context.Context) (err error) {
		w, err = p.beginFlat(ctx, volume, layer)
		return err
	})
	if err != nil || w == nil {
		return err
	}
	defer w.close()
	written := guard(p.log, func() error { return w.write(ctx) })
	lv := o.lv.Name
	if now := p.current.Load().volumes[volume]; now != nil {
		lv = now.lv.Name // a rollback has given its name away
	}
	err = p.onVolume(whole, lv, func(ctx context.Context) error { return p.endFlat(ctx, w, written) })
	if err != nil {
		err = p.leaveFlat(ctx, w, err)
	}
	if err == nil {
		p.log.V(2).Info("An old snapshot is read by a store of its own", "volumeGroup", v.vg.Name, "volume", o.lv.Name, "snapshot", l.lv.Name, "layers", len(w.layers), "took", time.Since(began))
	}
	return err
}

// beginFlat adds the logical volume of a flat store for a layer, and opens what must
// be read to write it; nil if the layer needs none. The volume's key is held.
func (p *Pool) beginFlat(ctx context.Context, volume, layer lvm2.ID) (*flatWork, error) {
	v, o, l, err := p.steep(volume, layer)
	if err != nil || l == nil {
		return nil, err
	}
	if path := o.path(l); !flattable(path[:len(path)-1]) {
		if err := p.trim(ctx, o.lv.Name); err != nil {
			return nil, err
		}
		if v, o, l, err = p.steep(volume, layer); err != nil || l == nil {
			return nil, err
		}
	}
	path := o.path(l)
	w := &flatWork{pool: p, view: v, layers: path[:len(path)-1], flat: &flat{of: volume, reads: layer, over: path[len(path)-1].lv.ID}}
	switch {
	case path[len(path)-1].snap == nil:
		return nil, fmt.Errorf("snapshot %s: %w: a layer that it reads through was removed", l.lv.Name, ErrLost)
	case !flattable(w.layers):
		return nil, fmt.Errorf("%w: how much the stores of layers between snapshot %s and volume %s use is not known yet", ErrPrecondition, l.lv.Name, o.lv.Name)
	}
	if w.sources, w.disks, err = p.sources(v, w.layers); err != nil {
		return nil, err
	}
	w.flat.chunk = cow.Smallest(w.sources).Sectors()
	w.layout = cow.NewFlat(w.flat.chunk.Bytes(), cow.MostMerged(w.sources))
	if err := p.addFlat(ctx, w); err != nil {
		return nil, p.abandonFlat(ctx, w, err)
	}
	return w, nil
}

// endFlat records that a flat store can be used, or throws it away because of err.
// The volume's key is held.
func (p *Pool) endFlat(ctx context.Context, w *flatWork, err error) error {
	if errors.Is(err, cow.ErrInvalid) {
		err = p.recordInvalid(ctx, w, err)
	}
	if err == nil {
		err = p.flatWritten(ctx, w)
	}
	if err == nil {
		p.facts.flats.put(w.flat.lv.ID, time.Now())
		return nil
	}
	return p.abandonFlat(ctx, w, err)
}

// abandonFlat gives back what there is of a flat store that could not be made, and returns why.
func (p *Pool) abandonFlat(ctx context.Context, w *flatWork, why error) error {
	w.close()
	if w.flat.lv == nil {
		return why
	}
	p.facts.flats.drop(w.flat.lv.ID)
	if v, err := p.latest(); err == nil && v.volumes[w.flat.of] != nil {
		if err := p.dropFlats(ctx, v.volumes[w.flat.of].lv.Name); err != nil && ctx.Err() == nil {
			p.log.Error(err, "What is left of a store that could not be made goes later", "volume", v.volumes[w.flat.of].lv.Name)
		}
	}
	return p.leaveFlat(ctx, w, why)
}

// leaveFlat takes down the device of a flat store that could not be made, if the pool is
// being closed: nothing else is carried out any more. The next process gives the extents
// back. It returns why the store could not be made.
func (p *Pool) leaveFlat(ctx context.Context, w *flatWork, why error) error {
	if p.ctx.Err() == nil {
		return why
	}
	return errors.Join(why, p.takeDown(context.WithoutCancel(ctx), p.current.Load().cowDevice(w.flat.lv)))
}

// same reports whether the layers, what lies below them, and the extents that are written to
// are in v what they were.
func (w *flatWork) same(v *view) bool {
	if w.made != nil {
		was, is := w.made.LVByID(w.flat.lv.ID), v.vg.LVByID(w.flat.lv.ID)
		if was == nil || is == nil || !sameExtents(w.made, was, v.vg, is) {
			return false
		}
	}
	o, l := v.volumes[w.flat.of], v.layers[w.flat.reads]
	if o == nil || l == nil {
		return false
	}
	path := o.path(l)
	if len(path) <= len(w.layers) || path[len(w.layers)].lv.ID != w.flat.over || !flattable(path[:len(w.layers)]) {
		return false
	}
	return slices.EqualFunc(w.layers, path[:len(w.layers)], func(was, is *layer) bool {
		return was.lv.ID == is.lv.ID && was.used == is.used && was.chunk == is.chunk && sameExtents(w.view.vg, was.lv, v.vg, is.lv)
	})
}

// errFlatChanged says that what a flat store is made of is not what it was.
var errFlatChanged = fmt.Errorf("%w: its history has changed meanwhile", ErrPrecondition)

// flatWritten records that the store can be used.
func (p *Pool) flatWritten(ctx context.Context, w *flatWork) error {
	return p.do(ctx, &change{what: "record that a store to read an old snapshot by is written", edit: func(t *edit) error {
		if !slices.ContainsFunc(t.flats[w.flat.reads], func(f *flat) bool { return f.lv.ID == w.flat.lv.ID }) || !w.same(t.view) {
			return errFlatChanged
		}
		c := t.vg.LVByID(w.flat.lv.ID).Clone()
		c.Tags = setTag(c.Tags, tagUsed, number(w.layout.Metadata().Sectors()))
		return t.put(c)
	}, act: func(ctx context.Context, v *view) error {
		// The next reader of the snapshot makes it anew. A store that somebody looks at stays until then.
		if err := p.takeDown(ctx, v.cowDevice(w.flat.lv)); err != nil && !errors.Is(err, ErrInUse) {
			return err
		}
		return nil
	}})
}

// number is the value of a tag.
func number(n size.Sectors) string { return fmt.Sprint(uint64(n)) }
