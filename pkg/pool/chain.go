package pool

import (
	"context"
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// stack puts a frozen layer's device over the one of the layer below it, which is the
// next newer one: its store holds what changed between the two cuts, the rest is read
// from there. Both devices are read-only, nothing may write to a frozen store but a
// fold. A layer that has a flat store is put over the first layer that is not in that.
func (p *Pool) stack(ctx context.Context, v *view, o *volume, l, newer *layer) error {
	if f, over := v.flatOf(o, l); f != nil {
		return p.shallow(ctx, v, o, l, f, over)
	}
	above, err := p.find(v.snapDevice(newer.lv))
	if err != nil {
		return err
	}
	if above == nil {
		return fmt.Errorf("snapshot %s of %s: the newer one it reads through has no device", l.lv.Name, newer.lv.Name)
	}
	d := v.snapDevice(l.lv)
	persistence, readOnly, use := dm.Persistent, true, storeFrozen
	if p.folder.writes(l.lv.ID) {
		persistence, readOnly, use = dm.PersistentOverflow, false, storeLive
		// Nobody else may write there: udev would assemble an array from what
		// lies in the volume. Nor have it open when the fold ends, as a scan would.
		d.udev = udevCOW
	}
	cowDev, _, err := p.mapStore(ctx, v, l.lv, use)
	if err != nil {
		return err
	}
	before, err := p.find(d)
	if err != nil {
		return err
	}
	dev, pending, err := p.ensureFrom(before, d, whole(l.length, dm.Snapshot{
		Origin: above.Device, COW: cowDev, Persistence: persistence, Chunk: l.chunk,
	}), readOnly)
	if err != nil || !pending {
		return err
	}
	if before == nil || !before.Live {
		return p.start(ctx, d, dev)
	}
	return p.swapTable(ctx, d, before.Suspended)
}

// chainUp makes the content of layer l readable and returns its device's path.
func (p *Pool) chainUp(ctx context.Context, v *view, o *volume, l *layer) (string, error) {
	if why := o.theirs(); why != "" {
		return "", fmt.Errorf("snapshot %s: %w: of volume %s %s", l.lv.Name, ErrPrecondition, o.lv.Name, why)
	}
	if err := p.readable(v, o, l); err != nil {
		return "", err
	}
	live := o.live()
	if live == nil {
		return "", fmt.Errorf("snapshot %s: %w: its volume %s has no live layer", l.lv.Name, ErrPrecondition, o.lv.Name)
	}
	top, err := p.find(v.topDevice(o.lv))
	if err != nil {
		return "", err
	}
	if top != nil {
		if err := p.upFrom(ctx, v, o, top); err != nil {
			return "", err
		}
	} else {
		// Nothing writes to the volume: its own device is not needed.
		table, err := p.blocks(ctx, v, o)
		if err != nil {
			return "", err
		}
		b, err := p.base(ctx, v, o, live, table)
		if err != nil {
			return "", err
		}
		if b.longer { // a fork's position has moved
			base := v.realDevice(o.lv)
			if err := p.swapTable(ctx, base, false); err != nil {
				return "", err
			}
		}
		if b.idle {
			if err := p.start(ctx, v.snapDevice(live.lv), b.snap); err != nil {
				return "", err
			}
		}
	}
	if path := o.path(l); path[len(path)-1] != live {
		return "", fmt.Errorf("snapshot %s: %w: a layer that it reads through was removed", l.lv.Name, ErrLost)
	}
	route := v.route(o, l)
	for i := len(route) - 2; i >= 0; i-- {
		if err := p.stack(ctx, v, o, route[i], route[i+1]); err != nil {
			return "", err
		}
	}
	d := v.snapDevice(l.lv)
	info, err := p.find(d)
	if err != nil {
		return "", err
	}
	if info == nil {
		return "", fmt.Errorf("snapshot %s: %w: not in the history of %s", l.lv.Name, ErrPrecondition, o.lv.Name)
	}
	return p.dm.EnsureNode(ctx, info.Name, info.Device)
}

// chainDown removes the devices of frozen layers that nobody has open, oldest
// first since they are stacked; and if the volume itself is not active, the rest.
func (p *Pool) chainDown(ctx context.Context, v *view, o *volume) error {
	if o.copying != nil {
		return nil // who copies it has its device, and takes that away
	}
	top, err := p.find(v.topDevice(o.lv))
	if err != nil {
		return err
	}
	if o.reading() && top == nil { // an interrupted activation left it
		return p.readerStoreDown(ctx, v, o)
	}
	if live := o.live(); top != nil && live != nil {
		// As long as the kernel has not followed a cut, originals go into the
		// former newest layer.
		info, err := p.find(v.snapDevice(live.lv))
		if err != nil || info == nil || !info.Live {
			return err
		}
	}
	read := false
	for _, l := range o.layers {
		if l.snap != nil {
			break
		}
		info, err := p.find(v.snapDevice(l.lv))
		if err != nil {
			return err
		}
		if info != nil && info.OpenCount > 0 {
			read = true // somebody reads it, or it is below another one
			if err := p.oldStoresDown(ctx, v, o, l); err != nil {
				return err
			}
			continue
		}
		// Without a device, too: an interruption may have left its store's.
		if err := p.layerDown(ctx, v, l); err != nil {
			return err
		}
	}
	if top != nil || read { // it may lie on the volume's blocks still, if a cut was interrupted
		return nil
	}
	if live := o.live(); live != nil {
		info, err := p.find(v.snapDevice(live.lv))
		if err != nil {
			return err
		}
		if info != nil && info.OpenCount > 0 {
			return nil
		}
		if err := p.layerDown(ctx, v, live); err != nil {
			return err
		}
	}
	if err := p.takeDown(ctx, v.realDevice(o.lv)); err != nil || !o.forked() {
		return err
	}
	return p.forkDown(ctx, v, o)
}

// down takes the volume's device away, and what lies below it if nobody reads a
// snapshot. ErrInUse if the volume is open. What LVM2 has made of it stays.
func (p *Pool) down(ctx context.Context, v *view, o *volume) error {
	if o.theirs() != "" {
		return nil
	}
	if err := p.collected(v, o); err != nil {
		return err
	}
	vol := v.topDevice(o.lv)
	info, err := p.find(vol)
	if err != nil {
		return err
	}
	if info != nil {
		if info.Suspended { // by a process that died
			if err := p.dm.Resume(info.Name, vol.udev); err != nil {
				return err
			}
		}
		if err := p.removeDevice(ctx, info.Name, vol.udev); err != nil {
			return fmt.Errorf("volume %s: %w", o.lv.Name, err)
		}
	}
	if o.reading() {
		return p.readerDown(ctx, v, o)
	}
	return p.chainDown(ctx, v, o)
}

// intact checks that l and every newer layer down to the live one still hold
// their content. A lost one poisons those that read through it without a word
// from the kernel, so all must be asked.
func (p *Pool) intact(v *view, o *volume, l *layer) error {
	if err := p.collected(v, o); err != nil {
		return fmt.Errorf("snapshot %s: %w", l.lv.Name, err)
	}
	for _, x := range o.path(l) {
		if x.lost {
			return fmt.Errorf("snapshot %s: %w: the store of %s overflowed, or one that it reads through was removed", l.lv.Name, ErrLost, x.lv.Name)
		}
		info, err := p.find(v.snapDevice(x.lv))
		if err != nil {
			return err
		}
		if info == nil {
			continue
		}
		status, err := p.snapshotStatus(info.Name)
		if err != nil {
			return err
		}
		if status.Invalid {
			return fmt.Errorf("snapshot %s: %w: the kernel dropped the store of %s", l.lv.Name, ErrLost, x.lv.Name)
		}
	}
	if !o.forked() {
		return nil
	}
	through, source, err := v.origin(o)
	if err != nil {
		return err
	}
	s, err := p.snapshotStatus(v.forkDevice(o.lv).name)
	if err == nil && s.Invalid {
		return fmt.Errorf("snapshot %s: %w: the kernel could not write to the store of the restored volume %s", l.lv.Name, ErrLost, o.lv.Name)
	}
	return p.intact(v, source, through)
}

func (p *Pool) snapshotStatus(name string) (dm.SnapshotStatus, error) {
	all, err := p.dm.Status(name)
	if err != nil {
		return dm.SnapshotStatus{}, err
	}
	for _, s := range all {
		if st, ok := s.Status.(dm.SnapshotStatus); ok {
			return st, nil
		}
	}
	return dm.SnapshotStatus{}, fmt.Errorf("device %s: no snapshot target in its table", name)
}

// settleOlder makes every layer that was live before read through the next
// newer one: its device goes if nobody has it open, else it gets a new table.
// Several may have been: a cut whose window failed leaves the layer before it on
// the volume's blocks, and the next cut comes all the same. One that is lost and
// in use hinders nothing.
func (p *Pool) settleOlder(ctx context.Context, v *view, o *volume, live *layer) error {
	inUse := map[*layer]bool{}
	for _, l := range o.layers[:len(o.layers)-1] { // oldest first: they are stacked
		info, err := p.find(v.snapDevice(l.lv))
		if err != nil {
			return err
		}
		switch {
		case info == nil:
		case info.OpenCount == 0:
			if err := p.layerDown(ctx, v, l); err != nil {
				return err
			}
		default: // somebody reads it, and so needs all that it reads through
			for _, x := range v.route(o, l) {
				inUse[x] = true
			}
		}
	}
	for _, l := range slices.Backward(o.layers[:len(o.layers)-1]) {
		if !inUse[l] {
			continue
		}
		newer := v.below(o, l)
		if newer == nil || l.lost {
			continue // as when lvm2 removed what it reads through: it keeps what it has until it is closed
		}
		if err := p.stack(ctx, v, o, l, newer); err != nil {
			return err
		}
	}
	return nil
}
