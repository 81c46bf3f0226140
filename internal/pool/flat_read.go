package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// flattenRead makes flat stores for the snapshots of a volume that are read by too
// many devices since newer ones were cut, and puts them below who reads. Its key must
// not be held.
func (p *Pool) flattenRead(ctx context.Context, lv string) error {
	for {
		v, err := p.latest()
		if err != nil {
			return err
		}
		o := v.volumeByLV(lv)
		if o == nil {
			return nil
		}
		l := p.steepestRead(v, o)
		if l == nil { // what is left of too many devices has no reader
			p.facts.steep.drop(o.lv.ID)
			return p.onVolume(ctx, lv, func(ctx context.Context) error {
				return p.do(ctx, &change{what: "remove what nobody reads of volume " + lv, act: func(ctx context.Context, now *view) error {
					return p.converge(ctx, now, lv)
				}})
			})
		}
		if err = p.flattenLayer(ctx, o.lv.ID, l.lv.ID); err == nil {
			err = p.onVolume(ctx, lv, func(ctx context.Context) error {
				// Also one that could not be put in place goes: the layers themselves do as well.
				return errors.Join(p.readBy(ctx, lv, l.lv.ID, len(v.route(o, l))), p.dropFlats(ctx, lv))
			})
		}
		if err != nil {
			if ctx.Err() == nil {
				p.facts.steep.put(o.lv.ID, err)
			}
			return fmt.Errorf("snapshot %s/%s: %w", v.vg.Name, l.lv.Name, err)
		}
	}
}

// readBy puts the flat store that was made for a layer below who reads it, by so many
// devices before. The volume's key is held.
func (p *Pool) readBy(ctx context.Context, lv string, layer lvm2.ID, before int) error {
	return p.do(ctx, &change{what: "read an old snapshot of volume " + lv + " by fewer devices", act: func(ctx context.Context, v *view) error {
		o, l := v.volumeByLV(lv), v.layers[layer]
		if o == nil || l == nil {
			return nil
		}
		for _, f := range v.flats[layer] {
			p.notAwaited(f)
		}
		if len(v.route(o, l)) >= before {
			return errFlatChanged
		}
		return p.converge(ctx, v, lv)
	}})
}

// steepest returns the oldest layer of o that has a device, and would be read by
// more devices than a flat store is worth; nil if there is none. Those of a fold that
// is under way stay as they are, and keep none of the others.
func (v *view) steepest(o *volume, has map[string]bool, folded func(lvm2.ID) bool) *layer {
	for i, l := range o.layers {
		if len(o.layers)-i <= flatLevels {
			break
		}
		if has[v.snapDevice(l.lv).uuid] && !l.lost && !folded(l.lv.ID) && len(v.route(o, l)) > flatLevels {
			return l
		}
	}
	return nil
}

// steepestRead does what steepest does, for a layer that somebody has open.
func (p *Pool) steepestRead(v *view, o *volume) *layer {
	has := map[string]bool{}
	for _, l := range o.layers {
		if info, err := p.find(v.snapDevice(l.lv)); err == nil && info != nil && info.OpenCount > 0 {
			has[v.snapDevice(l.lv).uuid] = true
		}
	}
	return v.steepest(o, has, p.folder.folds)
}
