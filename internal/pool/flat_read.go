package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// flattenRead makes flat stores for snapshots of a volume that, after newer cuts, are read
// by too many devices, and switches the readers to them. The caller must not hold the
// volume's key.
func (p *Pool) flattenRead(ctx context.Context, lv string) error {
	for {
		v, err := p.latest()
		if err != nil {
			return err
		}
		o := v.VolumeByLV(lv)
		if o == nil {
			return nil
		}
		l := p.steepestRead(v, o)
		if l == nil { // remaining devices have no reader
			p.facts.steep.drop(o.LV.ID)
			return p.onVolume(ctx, lv, func(ctx context.Context) error {
				return p.do(ctx, &change{what: "remove unread devices of volume " + lv, act: func(ctx context.Context, now *view) error {
					return p.converge(ctx, now, lv)
				}})
			})
		}
		if err = p.flattenLayer(ctx, o.LV.ID, l.LV.ID); err == nil {
			err = p.onVolume(ctx, lv, func(ctx context.Context) error {
				// A flat store that could not be put in place is dropped too: the layers
				// can still be read without it.
				return errors.Join(p.readBy(ctx, lv, l.LV.ID, len(v.Route(o, l))), p.dropFlats(ctx, lv))
			})
		}
		if err != nil {
			if ctx.Err() == nil {
				p.facts.steep.put(o.LV.ID, err)
			}
			return fmt.Errorf("snapshot %s/%s: %w", v.VG.Name, l.LV.Name, err)
		}
	}
}

// readBy switches the readers of a layer to its new flat store. before is the number of
// devices by which the layer was read. The caller holds the volume's key. Errors:
// errFlatChanged if the flat store does not reduce this number.
func (p *Pool) readBy(ctx context.Context, lv string, layer lvm2.ID, before int) error {
	return p.do(ctx, &change{what: "read an old snapshot of volume " + lv + " through fewer devices", act: func(ctx context.Context, v *view) error {
		o, l := v.VolumeByLV(lv), v.Layers.Get(layer)
		if o == nil || l == nil {
			return nil
		}
		for _, f := range v.Flats.Get(layer) {
			p.notAwaited(f)
		}
		if len(v.Route(o, l)) >= before {
			return errFlatChanged
		}
		return p.converge(ctx, v, lv)
	}})
}

// steepest returns the oldest layer of o that has a device and is read by more than
// FlatLevels devices; nil if there is none. It skips the layers of a running fold.
func (v *view) steepest(o *catalog.Volume, has map[string]bool, folded func(lvm2.ID) bool) *catalog.Layer {
	for i, l := range o.Layers {
		if len(o.Layers)-i <= catalog.FlatLevels {
			break
		}
		if has[v.snapDevice(l.LV).uuid] && !l.Lost && !folded(l.LV.ID) && len(v.Route(o, l)) > catalog.FlatLevels {
			return l
		}
	}
	return nil
}

// steepestRead is steepest for layers whose device is open.
func (p *Pool) steepestRead(v *view, o *catalog.Volume) *catalog.Layer {
	has := map[string]bool{}
	for _, l := range o.Layers {
		if info, err := p.find(v.snapDevice(l.LV)); err == nil && info != nil && info.OpenCount > 0 {
			has[v.snapDevice(l.LV).uuid] = true
		}
	}
	return v.steepest(o, has, p.folder.folds)
}
