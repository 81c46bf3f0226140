package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// flatWait is how long a flat store that nobody has read yet stays, if a volume reads
// the snapshot: the caller may have left, and will ask again. Without such a volume it
// stays only for flatSoon, until its maker reads it.
const (
	flatWait = 5 * time.Minute
	flatSoon = 5 * time.Second
)

// flattenBelow makes flat stores so that lv reads through few devices. Call it before the
// devices of lv are made. The caller must not hold the key of lv, because the time to make a
// flat store grows with the lists of its layers. Without a flat store, a stack of devices
// works too, up to the kernel's limit; flattenBelow returns an error only above the limit.
func (p *Pool) flattenBelow(ctx context.Context, lv string) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	for _, name := range v.Family(lv) {
		o := v.VolumeByLV(name)
		if o == nil {
			continue
		}
		l := v.Layers.Get(o.From())
		if l == nil || v.Circular(o) != nil {
			continue
		}
		err := p.flattenLayer(ctx, l.Of, l.LV.ID)
		if errors.Is(err, ErrPrecondition) && p.tooDeep(l) && p.folder.stop(ctx, l.Of) {
			err = p.flattenLayer(ctx, l.Of, l.LV.ID)
		}
		switch {
		case err == nil:
		case ctx.Err() != nil || p.tooDeep(l):
			return fmt.Errorf("snapshot %s/%s: %w", v.VG.Name, l.LV.Name, err)
		default:
			p.log.V(2).Info("No flat store could be made; an old snapshot is read through one device for each newer snapshot", "volumeGroup", p.vgName, "snapshot", l.LV.Name, "why", err)
		}
	}
	return nil
}

// tooDeep reports whether l currently lies too deep for the kernel to read.
func (p *Pool) tooDeep(l *catalog.Layer) bool {
	v, err := p.latest()
	if err != nil {
		return true
	}
	o, now := v.Volumes.Get(l.Of), v.Layers.Get(l.LV.ID)
	return o != nil && now != nil && v.Depth(o, now) > p.deepest
}

// flattenLayer makes a flat store for a layer that is read by more than FlatLevels
// devices, or would be. It finishes the store even if the caller leaves; other callers
// wait for the same store. The caller must not hold the volume's key.
func (p *Pool) flattenLayer(ctx context.Context, volume, layer lvm2.ID) error {
	if _, _, l, err := p.steep(volume, layer); err != nil || l == nil {
		return err
	}
	_, err := run(ctx, &p.group, []string{flatKey(layer)}, func(ctx context.Context) (none struct{}, err error) {
		return none, p.makeFlat(ctx, volume, layer)
	})
	return err
}

// steep looks up a volume and a layer. l is nil if the layer needs no flat store.
func (p *Pool) steep(volume, layer lvm2.ID) (v *view, o *catalog.Volume, l *catalog.Layer, err error) {
	if v, err = p.latest(); err != nil {
		return nil, nil, nil, err
	}
	o, l = v.Volumes.Get(volume), v.Layers.Get(layer)
	if o == nil || l == nil || o.Theirs() != "" || len(v.Route(o, l)) <= catalog.FlatLevels {
		return v, o, nil, nil
	}
	for _, x := range o.Path(l) {
		if x.Lost {
			return v, o, nil, nil // its readers get the error
		}
	}
	return v, o, l, nil
}

// makeFlat makes a flat store for a layer. It holds the volume's key only to add the logical
// volume and to record that the store is written. It does not hold the key while it reads
// and merges the layers' lists: frozen stores do not change, and makeFlat checks at the end
// that the layers are the same. An interruption leaves a logical volume without tagUsed,
// which is deleted later. The caller holds the layer's flatKey.
func (p *Pool) makeFlat(ctx context.Context, volume, layer lvm2.ID) error {
	v, o, l, err := p.steep(volume, layer)
	if err != nil || l == nil {
		return err
	}
	began := time.Now()
	var w *flatWork
	whole := context.WithoutCancel(ctx) // wait even while the pool is closed, because w has open files
	err = p.onVolume(whole, o.LV.Name, func(ctx context.Context) (err error) {
		w, err = p.beginFlat(ctx, volume, layer)
		return err
	})
	if err != nil || w == nil {
		return err
	}
	defer w.close()
	written := guard(p.log, func() error { return w.write(ctx) })
	lv := o.LV.Name
	if now := p.current.Load().Volumes.Get(volume); now != nil {
		lv = now.LV.Name // a rollback may have renamed it
	}
	err = p.onVolume(whole, lv, func(ctx context.Context) error { return p.endFlat(ctx, w, written) })
	if err != nil {
		err = p.leaveFlat(ctx, w, err)
	}
	if err == nil {
		p.log.V(2).Info("Made a flat store for an old snapshot", "volumeGroup", v.VG.Name, "volume", o.LV.Name, "snapshot", l.LV.Name, "layers", len(w.layers), "took", time.Since(began))
	}
	return err
}

// beginFlat adds the logical volume of a flat store for a layer, and opens the layers' stores.
// It returns nil if the layer needs no flat store. The caller holds the volume's key.
func (p *Pool) beginFlat(ctx context.Context, volume, layer lvm2.ID) (*flatWork, error) {
	v, o, l, err := p.steep(volume, layer)
	if err != nil || l == nil {
		return nil, err
	}
	if path := o.Path(l); !catalog.Flattable(path[:len(path)-1]) {
		if err := p.trim(ctx, o.LV.Name); err != nil {
			return nil, err
		}
		if v, o, l, err = p.steep(volume, layer); err != nil || l == nil {
			return nil, err
		}
	}
	path := o.Path(l)
	w := &flatWork{pool: p, view: v, layers: path[:len(path)-1], flat: &catalog.Flat{Of: volume, Reads: layer, Over: path[len(path)-1].LV.ID}}
	switch {
	case path[len(path)-1].Snap == nil:
		return nil, fmt.Errorf("snapshot %s: %w: a layer that it reads through was removed", l.LV.Name, ErrLost)
	case !catalog.Flattable(w.layers):
		return nil, fmt.Errorf("%w: the usage of the stores between snapshot %s and volume %s is not known yet", ErrPrecondition, l.LV.Name, o.LV.Name)
	}
	if w.sources, w.disks, err = p.sources(v, w.layers); err != nil {
		return nil, err
	}
	w.flat.Chunk = cow.Smallest(w.sources).Sectors()
	w.layout = cow.NewFlat(w.flat.Chunk.Bytes(), cow.MostMerged(w.sources))
	if err := p.addFlat(ctx, w); err != nil {
		return nil, p.abandonFlat(ctx, w, err)
	}
	return w, nil
}

// endFlat records that a flat store can be used, or discards it because of err. The caller
// holds the volume's key.
func (p *Pool) endFlat(ctx context.Context, w *flatWork, err error) error {
	if storeLost(err) {
		err = p.recordInvalid(ctx, w, err)
	}
	if err == nil {
		err = p.flatWritten(ctx, w)
	}
	if err == nil {
		p.facts.flats.put(w.flat.LV.ID, time.Now())
		return nil
	}
	return p.abandonFlat(ctx, w, err)
}

// abandonFlat deletes the parts of a flat store that could not be made, and returns the error
// why.
func (p *Pool) abandonFlat(ctx context.Context, w *flatWork, why error) error {
	w.close()
	if w.flat.LV == nil {
		return why
	}
	p.facts.flats.drop(w.flat.LV.ID)
	if v, err := p.latest(); err == nil && v.Volumes.Get(w.flat.Of) != nil {
		if err := p.dropFlats(ctx, v.Volumes.Get(w.flat.Of).LV.Name); err != nil && ctx.Err() == nil {
			p.log.Error(err, "Failed to delete an unfinished flat store; it will be retried", "volume", v.Volumes.Get(w.flat.Of).LV.Name)
		}
	}
	return p.leaveFlat(ctx, w, why)
}

// leaveFlat removes the device of a flat store that could not be made, if the pool is being
// closed and carries out no more changes. The next process frees the extents. leaveFlat
// returns the error why.
func (p *Pool) leaveFlat(ctx context.Context, w *flatWork, why error) error {
	if p.ctx.Err() == nil {
		return why
	}
	return errors.Join(why, p.takeDown(context.WithoutCancel(ctx), p.current.Load().cowDevice(w.flat.LV)))
}

// same reports whether the layers, the layer below them, and the extents of the flat store
// are unchanged in v.
func (w *flatWork) same(v *view) bool {
	if w.made != nil {
		was, is := w.made.LVByID(w.flat.LV.ID), v.VG.LVByID(w.flat.LV.ID)
		if was == nil || is == nil || !catalog.SameExtents(w.made, was, v.VG, is) {
			return false
		}
	}
	o, l := v.Volumes.Get(w.flat.Of), v.Layers.Get(w.flat.Reads)
	if o == nil || l == nil {
		return false
	}
	path := o.Path(l)
	if len(path) <= len(w.layers) || path[len(w.layers)].LV.ID != w.flat.Over || !catalog.Flattable(path[:len(w.layers)]) {
		return false
	}
	return slices.EqualFunc(w.layers, path[:len(w.layers)], func(was, is *catalog.Layer) bool {
		return was.LV.ID == is.LV.ID && was.Used == is.Used && was.Chunk == is.Chunk && catalog.SameExtents(w.view.VG, was.LV, v.VG, is.LV)
	})
}

// errFlatChanged is the error of a flat store whose layers have changed.
var errFlatChanged = fmt.Errorf("%w: its history changed in the meantime", ErrPrecondition)

// flatWritten records that the store can be used.
func (p *Pool) flatWritten(ctx context.Context, w *flatWork) error {
	return p.do(ctx, &change{what: "record that a flat store is written", edit: func(t *edit) error {
		if !slices.ContainsFunc(t.Flats.Get(w.flat.Reads), func(f *catalog.Flat) bool { return f.LV.ID == w.flat.LV.ID }) || !w.same(t.view()) {
			return errFlatChanged
		}
		return t.SetUsed(t.VG.LVByID(w.flat.LV.ID), w.layout.Metadata().Sectors())
	}, act: func(ctx context.Context, v *view) error {
		// The next reader of the snapshot makes the device again. A device that is open, as by
		// a scan, stays until then.
		if err := p.takeDown(ctx, v.cowDevice(w.flat.LV)); err != nil && !errors.Is(err, ErrInUse) {
			return err
		}
		return nil
	}})
}

// number formats n as the value of a tag.
