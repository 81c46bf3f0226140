package pool

import (
	"context"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// The kernel allocates a store's chunks in ascending order. The used size of the former
// newest layer's store, read while a cut suspends the volume, is therefore a boundary. The
// chunks before it changed between the two cuts. The kernel adds chunks after it until the
// layer's device is removed; these are copies of chunks that the new layer also has.

// noteBoundary notes the used size of the former newest layer. The caller has suspended the
// volume, and the new layer does not receive copies yet. If the layer's device does not lie
// on the volume's blocks, this cut does not freeze the layer, and nothing is noted.
func (p *Pool) noteBoundary(v *view, o *catalog.Volume, real dm.Device) {
	if len(o.Layers) < 2 {
		return
	}
	former := o.Layers[len(o.Layers)-2]
	p.facts.boundaries.drop(former.LV.ID) // perhaps of a cut that was taken back
	if !former.Inexact() {
		return
	}
	name := v.snapDevice(former.LV).name
	table, err := p.dm.Table(name)
	if err != nil || len(table) != 1 {
		return
	}
	if t, ok := table[0].Target.(dm.Snapshot); !ok || t.Origin != real {
		return
	}
	if s, err := p.snapshotStatus(name); err == nil && !s.Invalid && !s.NoUsage {
		p.facts.boundaries.put(former.LV.ID, s.Used)
	}
}

// untouched reports whether the live layer of o, frozen now, will receive no more copies:
// neither the layer nor the volume has a device.
func (p *Pool) untouched(v *view, o *catalog.Volume, live *catalog.Layer) bool {
	if live.Lost || live.Superset {
		return false
	}
	for _, d := range []device{v.topDevice(o.LV), v.snapDevice(live.LV)} {
		if info, err := p.find(d); err != nil || info != nil {
			return false
		}
	}
	return true
}

// unrecorded reports whether a boundary in o's history is known but not yet on the disk.
func (p *Pool) unrecorded(o *catalog.Volume) bool {
	for _, l := range o.Layers {
		if p.facts.boundaries.has(l.LV.ID) && l.Inexact() {
			return true
		}
	}
	return false
}

// recordBoundaries records the known boundaries of a volume's history in the metadata. If the
// driver is interrupted before, these boundaries stay unknown.
func (p *Pool) recordBoundaries(ctx context.Context, lv string) error {
	return p.do(ctx, &change{what: "record what changed between snapshots of volume " + lv, edit: func(t *edit) error {
		o := t.VolumeByLV(lv)
		if o == nil {
			return nil
		}
		for _, l := range o.Layers {
			if err := p.setBoundary(t, l.LV.ID); err != nil {
				return err
			}
		}
		return nil
	}, act: func(context.Context, *view) error {
		p.forgetBoundaries()
		return nil
	}})
}

// forgetBoundaries drops the boundaries that are on the disk or no longer of use.
func (p *Pool) forgetBoundaries() {
	p.facts.boundaries.keep(func(id lvm2.ID) bool {
		l := p.current.Load().Layers.Get(id)
		return l != nil && l.Inexact()
	})
}

// setBoundary puts a layer's boundary into its tags if it is known.
func (p *Pool) setBoundary(t *edit, id lvm2.ID) error {
	used, known := p.facts.boundaries.get(id)
	l, lv := t.Layers.Get(id), t.VG.LVByID(id)
	if !known || l == nil || lv == nil || !l.Inexact() {
		return nil
	}
	return t.SetBound(lv, used)
}
