package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// take cuts a new layer of a volume that may be in use. The edit finish then gives the layer
// its purpose: a snapshot's name, or a copy that reads it.
//
// take first commits the layer without a purpose, and makes its devices beside those in use.
// It then freezes the volume, and lets the kernel cut it (cutting). Only after this, it commits
// the edit finish. So nobody gets a cut that failed or was interrupted: its layer is taken back,
// or stays only while older layers read through it, and a repeated call makes a new cut. If the
// volume has no device, take makes a single commit.
func (p *Pool) take(ctx context.Context, what, lv, csi string, finish func(*edit, catalog.CutLayer) error) error {
	var err error
	for range freezeTries {
		if err = p.takeOnce(ctx, what, lv, csi, finish); !errors.Is(err, errWentOn) {
			return err
		}
	}
	return err
}

// takeOnce is one attempt of take. Errors: errWentOn if another attempt may succeed.
func (p *Pool) takeOnce(ctx context.Context, what, lv, csi string, finish func(*edit, catalog.CutLayer) error) error {
	var active bool
	c := cutting{Pool: p, lv: lv, frozen: make(chan froze, 1)}
	err := p.do(ctx, &change{what: what, edit: func(t *edit) error {
		c.done, c.foreign = catalog.CutLayer{}, p.foreign.Load() // the edit may be made again
		o, err := t.Changeable(lv)
		if err != nil {
			return err
		}
		if active, err = p.active(t.view(), o); err != nil {
			return err
		}
		l, err := p.cut(t, o, csi)
		if err != nil {
			return err
		}
		if c.done.Layer = l.ID; active {
			return nil
		}
		c.done.At = time.Now()
		return finish(t, c.done)
	}, act: func(act context.Context, v *view) error {
		if !active {
			return p.settle(act, v, lv)
		}
		return c.begin(ctx, act, v)
	}})
	if !active {
		return err
	}
	if !c.freezes() { // begin has frozen the volume
		err = c.end(what, err)
	}
	if err == nil {
		err = p.do(ctx, &change{what: what, edit: func(t *edit) error { return finish(t, c.done) }})
	}
	if err != nil && c.done.Layer != "" {
		p.withdraw(ctx, c.done.Layer, lv, err)
	}
	return err
}

// active reports whether o has a device, so that its content may change.
func (p *Pool) active(v *view, o *catalog.Volume) (bool, error) {
	info, err := p.find(v.topDevice(o.LV))
	return info != nil && info.Live, err
}

// withdraw takes back the layer of a cut that failed with the error why. If the kernel may have
// made the cut, withdraw deletes the layer instead, unless older layers read through it. If
// withdraw fails, the caretaker brings the kernel in line with the metadata, and the layer is
// deleted when the pool is opened again.
func (p *Pool) withdraw(ctx context.Context, layer lvm2.ID, lv string, why error) {
	c := &change{what: "take back a failed cut", edit: func(t *edit) error {
		l := t.Layers.Get(layer)
		if l != nil && p.uncut(t.view(), l) {
			return t.Withdraw(l)
		}
		return t.Prune(l)
	}, act: func(ctx context.Context, v *view) error {
		return p.retire(ctx, v, v.Family(lv))
	}}
	var stuck *stuckFreeze
	if errors.As(why, &stuck) {
		c.act = nil // the kernel is still suspending the volume; the caretaker follows
	}
	if err := p.do(ctx, c); err != nil {
		if o := p.current.Load().VolumeByLV(lv); o != nil {
			p.facts.unsettled.put(o.LV.ID, true)
		}
		klog.FromContext(ctx).Error(err, "Failed to take back a failed cut; its layer stays until the pool is opened again", "volume", lv)
	}
}

// uncut reports whether the kernel has certainly not cut the volume for its live layer l: the
// layer's snapshot was never resumed, and the layer before still gets the copies. The caller
// holds the volume's key and LVM2's lock, so that nobody cuts the volume meanwhile.
func (p *Pool) uncut(v *view, l *catalog.Layer) bool {
	o := v.Volumes.Get(l.Of)
	snap, err := p.find(v.snapDevice(l.LV))
	if err != nil || l != o.Live() || snap != nil && snap.Live {
		return false
	}
	former := o.FrozenFor(l)
	return former == nil || p.onBlocks(v, o, v.snapDevice(former.LV))
}

// unname removes the names of snapshots that the kernel has not cut. An older release
// committed the name before the cut in the kernel. No caller got such a snapshot, and its
// cut would be later than its time says. The layer stays if older layers read through it.
func (p *Pool) unname(t *edit) error {
	if t.Unclear != nil {
		return nil
	}
	has, err := p.allUUIDs()
	if err != nil {
		return err
	}
	for _, o := range t.Volumes.All() {
		l := o.Live()
		if l == nil || !l.Named || o.Theirs() != "" || !has[t.view().topDevice(o.LV).uuid] || p.followed(t.view(), o, l) {
			continue
		}
		if err := t.Unname(l); err != nil {
			return err
		}
	}
	return nil
}

// followed reports whether the kernel has cut o for its live layer. It also reports true if
// o has no devices, or if the kernel does not tell. A live layer whose snapshot was removed
// by hand counts as cut.
func (p *Pool) followed(v *view, o *catalog.Volume, live *catalog.Layer) bool {
	top, err := p.find(v.topDevice(o.LV))
	if err != nil || top == nil || !top.Live {
		return true
	}
	snap, err := p.find(v.snapDevice(live.LV))
	if err != nil || snap != nil && snap.Live {
		return true
	}
	table, err := p.dm.Table(top.Name)
	if err != nil || len(table) == 0 {
		return true
	}
	if _, origin := table[0].Target.(dm.SnapshotOrigin); !origin {
		return false // the first cut
	}
	return !slices.ContainsFunc(o.Layers, func(l *catalog.Layer) bool {
		return l != live && p.onBlocks(v, o, v.snapDevice(l.LV))
	})
}

// cuttable returns an error if o cannot be cut now. first is the size of a new layer's store,
// in extents.
func (p *Pool) cuttable(v *view, o *catalog.Volume) (first lvm2.Extents, err error) {
	first = p.firstStore(v, v.BytesOf(o.LV), p.config.Chunk)
	if err := errors.Join(v.Writable(), p.roomForText(v), p.deepens(v, o)); err != nil {
		return first, err // waiting for room would not help
	}
	if p.facts.holding.has(o.LV.ID) { // the freeze would fail
		return first, errHeld(v, o)
	}
	return first, p.roomForStore(v, o, first)
}

// cut adds a new newest layer to o's history. Its logical volume is named after csi, and the
// layer has no purpose yet (see take). cut writes an empty store to the extents before the
// metadata names them, because otherwise the kernel would read old bytes as exceptions.
func (p *Pool) cut(t *edit, o *catalog.Volume, csi string) (*lvm2.LV, error) {
	if csi != "" && t.Snapshots.Get(csi) != nil {
		return nil, fmt.Errorf("snapshot %q: %w: another process has made it just now; retry", csi, ErrUnavailable)
	}
	first, err := p.cuttable(t.view(), o)
	if err != nil {
		return nil, err
	}
	length := t.BytesOf(o.LV)
	chunk := p.config.Chunk
	kind, err := t.Kind(o.LV)
	if err != nil {
		return nil, err
	}
	ranges, err := t.AllocateOn(kind, first, catalog.HighEnd)
	if err != nil {
		return nil, err
	}
	if err := t.blankStore(ranges, chunk); err != nil {
		return nil, fmt.Errorf("preparing a new COW store: %w", err)
	}
	csi = cmp.Or(csi, "clone-of-"+o.LV.Name)
	lvName, err := t.LVName(csi)
	if err != nil {
		return nil, err
	}
	lv := t.NewLayer(lvName, o, chunk.Sectors())
	lv.CreationHost = p.host.Hostname
	lv.Segments = catalog.AppendExtents(nil, ranges...)
	if former := o.Live(); former != nil {
		if !former.Lost && (p.dropped(t.view().snapDevice(former.LV)) || p.collected(t.view(), o) != nil) {
			if err := t.Lose(o, former); err != nil {
				return nil, err
			}
		}
		if err := t.formatStore(former); err != nil {
			return nil, fmt.Errorf("preparing to freeze the COW store of %s: %w", former.LV.Name, err)
		}
		p.facts.boundaries.drop(former.LV.ID) // of a cut that was taken back
		if err := t.Freeze(former, p.untouched(t.view(), o, former)); err != nil {
			return nil, err
		}
	}
	if err := t.Put(lv); err != nil {
		return nil, err
	}
	return lv, t.Join(o, lv, length, chunk.Sectors())
}
