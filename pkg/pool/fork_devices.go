package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// blocks returns the table of the device that has the volume's content, and
// brings up what it refers to: a fork's devices.
func (p *Pool) blocks(ctx context.Context, v *view, o *volume) (dm.Table, error) {
	own, err := v.linearTable(o.lv)
	if err != nil || !o.forked() {
		return own, err
	}
	through, err := p.forkUp(ctx, v, o)
	if err != nil {
		return nil, err
	}
	l, _, err := v.origin(o)
	if err != nil {
		return nil, err
	}
	number := map[string]dm.Device{v.forkDevice(o.lv).uuid: through}
	var window *windowOn
	if w := p.hydrator.window(o.lv.ID); w != nil {
		d := v.device(o.lv, w.layer, udevReal)
		info, err := p.find(d)
		if err != nil {
			return nil, err
		}
		if info == nil {
			return nil, fmt.Errorf("volume %s/%s: the device of its window %s is gone", v.vg.Name, o.lv.Name, w.layer)
		}
		number[d.uuid], window = info.Device, &windowOn{d.uuid, w.span}
	}
	table, _ := forkOn(own, o.hydrated.missing(l.length), v.forkDevice(o.lv).uuid, window).bind(func(uuid string) (dm.Device, bool) {
		d, known := number[uuid]
		return d, known
	})
	return table, nil
}

// cutTable returns the part of a linear table between two sectors.
func cutTable(t dm.Table, from, to size.Sectors) dm.Table {
	var out dm.Table
	for _, s := range t {
		lo, hi := max(from, s.Start), min(to, s.Start+s.Length)
		if lo < hi {
			l := s.Target.(dm.Linear)
			out = append(out, dm.Segment{Start: lo, Length: hi - lo, Target: dm.Linear{Device: l.Device, Offset: l.Offset + lo - s.Start}})
		}
	}
	return out
}

// forkUp makes the device by which o reads through its snapshot.
func (p *Pool) forkUp(ctx context.Context, v *view, o *volume) (dm.Device, error) {
	l, source, err := v.origin(o)
	if err != nil {
		return dm.Device{}, err
	}
	if _, err := p.chainUp(ctx, v, source, l); err != nil {
		return dm.Device{}, err
	}
	if err := p.intact(v, source, l); err != nil {
		return dm.Device{}, err
	}
	above, err := p.found(v.snapDevice(l.lv))
	if err != nil {
		return dm.Device{}, err
	}
	return p.overlay(ctx, v, o, l, above.Device, layerFork)
}

// overlay makes a device that shows what is above layer l and keeps what is written
// to it in o's store.
func (p *Pool) overlay(ctx context.Context, v *view, o *volume, l *layer, above dm.Device, layer string) (dm.Device, error) {
	d := v.device(o.lv, layer, udevReal)
	storeDev, _, err := p.mapStore(ctx, v, o.fork.lv, storeLive)
	if err != nil {
		return dm.Device{}, err
	}
	before, err := p.find(d)
	if err != nil {
		return dm.Device{}, err
	}
	short := before == nil && crowded(sectors(v, o.fork.lv.Size()), l.length, o.fork.chunk)
	if short {
		if _, _, err := p.mapStore(ctx, v, o.fork.lv, storeStretched); err != nil {
			return dm.Device{}, err
		}
	}
	// Overflow: a store that cannot hold a write fails that write, it does not
	// give up all that was written before.
	dev, pending, err := p.ensureFrom(before, d, whole(l.length, dm.Snapshot{
		Origin: above, COW: storeDev, Persistence: dm.PersistentOverflow, Chunk: o.fork.chunk,
	}), false)
	if short {
		_, _, failed := p.mapStore(ctx, v, o.fork.lv, storeLive)
		err = errors.Join(err, failed)
	}
	if err == nil && pending {
		err = p.start(ctx, d, dev)
	}
	return dev, err
}

// forkDown removes the devices by which a volume reads or read through a
// snapshot, unless they are in use, and those of the snapshot.
func (p *Pool) forkDown(ctx context.Context, v *view, o *volume) error {
	if o.forked() && p.hydrator.window(o.lv.ID) != nil {
		return nil
	}
	for _, layer := range []string{layerWindow0, layerWindow1, layerFork} {
		d := v.device(o.lv, layer, udevReal)
		info, err := p.find(d)
		if err != nil {
			return err
		}
		if info == nil {
			continue
		}
		if info.OpenCount > 0 {
			return nil
		}
		if err := p.removeDevice(ctx, info.Name, d.udev); err != nil {
			return err
		}
	}
	if !o.forked() || o.fork == nil {
		return nil
	}
	if err := p.takeDown(ctx, v.cowDevice(o.fork.lv)); err != nil {
		return err
	}
	if l := v.layers[o.copyOf]; l != nil {
		return p.chainDown(ctx, v, v.volumes[l.of])
	}
	return nil
}
