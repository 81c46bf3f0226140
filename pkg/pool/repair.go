package pool

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// repair brings the kernel in line with the metadata after an interruption at
// any point, and picks up work that was under way. The metadata come first; the
// devices follow in the background, those of each volume for themselves.
func (p *Pool) repair(ctx context.Context) error {
	if len(p.store.Problems()) > 0 {
		// An interrupted commit may have left metadata areas out of date, about
		// which LVM2 warns. Any commit rewrites them.
		if err := p.do(ctx, &change{what: "rewrite the metadata of volume group " + p.vgName, edit: func(t *edit) error {
			t.changed = true
			return nil
		}}); err != nil {
			p.log.Error(err, "Problems of the volume group stay", "problems", p.store.Problems())
		}
	}
	if err := p.amend(ctx); err != nil {
		return err
	}
	err := p.do(ctx, &change{what: "repair volume group " + p.vgName, act: func(ctx context.Context, v *view) error {
		for _, s := range v.strange {
			p.log.Info("Left alone, its tags make no sense", "what", s)
		}
		if err := p.renamed(ctx, v); err != nil {
			p.log.Error(err, "Devices keep the names that they had before a rollback")
		}
		return nil
	}})
	if err != nil {
		return err
	}
	v, err := p.latest()
	if err != nil {
		return err
	}
	p.changed.Store(false)
	repaired := p.repairFamilies(ctx, v)
	p.settled(nil, v)
	select {
	case <-repaired:
	case <-time.After(repairPatience):
		p.log.Info("Volumes are still being repaired; who uses one of them waits for that", "volumeGroup", p.vgName)
	case <-ctx.Done():
	}
	return nil
}

// amend commits what an interruption has left undone in the metadata. Where the
// metadata area is full, or lvm2 moves something, each change may fail for itself: the
// pool must be open so that somebody can make room. An error means that ctx has ended.
func (p *Pool) amend(ctx context.Context) error {
	for _, c := range []*change{
		{what: "record that the disk is blank", edit: func(t *edit) error {
			if p.blank {
				t.wiped, t.changed = t.free, true
			}
			return nil
		}},
		{what: "take names from snapshots that were not cut", edit: p.unname},
		{what: "throw away what nothing needs", edit: (*edit).tidy},
		{what: "give back what old snapshots were read by", edit: p.discardIdle},
		{what: "lock what lvm2 must leave alone", edit: (*edit).protect},
	} {
		c.what += " in volume group " + p.vgName
		err := p.do(ctx, c)
		if err != nil && ctx.Err() != nil {
			return err
		}
		if err != nil {
			p.log.Error(err, "Repair left something undone; it is tried again when the pool is opened again")
		}
	}
	return nil
}

// tidy throws away what nothing needs any more. A crash cannot leave such layers
// behind, but LVM2's lvremove of a snapshot can, and deletes while a tag was not understood.
func (t *edit) tidy() error {
	for _, o := range t.volumes {
		if err := t.tidyOne(o); err != nil {
			return err
		}
	}
	return nil
}

func (t *edit) tidyOne(o *volume) error {
	if err := t.discard(storesOf(t.unneeded(o))...); err != nil || !o.deleted || !t.disposable(o) {
		return err
	}
	return t.discardBlocks(o)
}

// leftover says whether nothing needs o, or some of its layers, any more.
func (v *view) leftover(o *volume) bool {
	return len(v.unneeded(o)) > 0 || o.deleted && v.disposable(o)
}

// tidyVolume throws away what nothing needs of a volume. Its key is held: while it
// is being cut it has a layer that is nobody's yet.
func (p *Pool) tidyVolume(ctx context.Context, lv string) error {
	var family []string
	return p.do(ctx, &change{what: "throw away what nothing needs of volume " + lv, edit: func(t *edit) error {
		o := t.volumeByLV(lv)
		if o == nil || !t.leftover(o) {
			return nil
		}
		family = t.family(lv)
		return t.tidyOne(o)
	}, act: func(ctx context.Context, v *view) error { return p.retire(ctx, v, family) }})
}

// notForked removes what a volume that is hydrated was a fork by, if an
// interruption left it.
func (p *Pool) notForked(ctx context.Context, v *view, o *volume) error {
	info, err := p.find(v.forkDevice(o.lv))
	if err != nil || info == nil {
		return err
	}
	if err := p.hydrator.shutLeft(ctx, v, o); err != nil {
		return err
	}
	p.hydrator.setWindow(o.lv.ID, nil)
	if err := p.rebase(ctx, v, o, nothing); err != nil {
		return err
	}
	return p.forkDown(ctx, v, o)
}

// sweep removes the devices of logical volumes that are trash, top ones first,
// unless somebody has them open.
func (p *Pool) sweep(ctx context.Context, v *view) error {
	if len(v.trash) == 0 {
		return nil
	}
	p.trash.Lock()
	defer p.trash.Unlock()
	gone := map[string]bool{}
	for _, lv := range v.trash {
		gone[string(lv.ID)] = linear(lv) // else LVM2 is moving it
	}
	all, err := p.dm.List()
	if err != nil {
		return err
	}
	var names []string
	for _, e := range all {
		if id, _, ok := splitUUID(v.vg.ID, e.UUID); ok && gone[id] {
			names = append(names, e.Name)
		}
	}
	for progress := true; progress && len(names) > 0; {
		progress = false
		var left []string
		for _, name := range names {
			info, err := p.dm.Info(name)
			if err != nil || info.OpenCount > 0 {
				left = append(left, name)
				continue
			}
			if err := p.removeDevice(ctx, name, udevReal); err != nil {
				return err
			}
			progress = true
			p.facts.noteSwept()
		}
		names = left
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, p.stepAside(v, name))
	}
	return errors.Join(errs...)
}

// stepAside renames a device of a piece of trash that somebody has open, so that
// its name can be used again.
func (p *Pool) stepAside(v *view, name string) error {
	info, err := p.dm.Info(name)
	if errors.Is(err, dm.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	id, layer, _ := splitUUID(v.vg.ID, info.UUID)
	to := lvm2.DMName(v.vg.Name, trashName(lvm2.ID(id)), layer)
	if to == name {
		return nil
	}
	p.log.V(2).Info("A device of a deleted logical volume is open, its space stays in use", "device", name, "renamed", to)
	return errors.Join(p.dm.Rename(name, to, udevReal), p.dm.RemoveNode(name))
}

// splitUUID takes a dm UUID of LVM2 apart: the LV's id and the layer.
func splitUUID(vg lvm2.ID, uuid string) (lv, layer string, ok bool) {
	rest, ok := strings.CutPrefix(uuid, lvm2.DMUUID(vg, "", ""))
	if !ok || len(rest) < 32 {
		return "", "", false
	}
	return rest[:32], strings.TrimPrefix(rest[32:], "-"), true
}
