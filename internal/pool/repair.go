package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// repair brings the kernel in line with the metadata after an interruption at any
// point, and resumes unfinished work. It repairs the metadata first. The devices
// follow in the background, each volume's separately.
func (p *Pool) repair(ctx context.Context) error {
	if problems := p.vgStore.Problems(); len(problems) > 0 {
		p.log.Info("The metadata is old or damaged on a disk and is rewritten", "volumeGroup", p.vgName, "problems", errors.Join(problems...).Error(), "lost", fmt.Sprint(errors.Join(p.vgStore.Lost()...)))
		// An interrupted commit may have left metadata areas out of date, and LVM2
		// warns about them. Any commit rewrites them.
		if err := p.do(ctx, &change{what: "rewrite the metadata of volume group " + p.vgName, edit: func(t *edit) error {
			t.Changed = true
			return nil
		}}); err != nil {
			p.log.Error(err, "Failed to rewrite metadata that is old or damaged", "problems", p.vgStore.Problems())
		}
	}
	if err := p.amend(ctx); err != nil {
		return err
	}
	v, err := p.latest()
	if err != nil {
		return err
	}
	for _, s := range v.Strange {
		p.log.Info("Ignored a logical volume whose tags make no sense", "what", s)
	}
	p.changed.Store(false)
	repaired := p.repairFamilies(ctx, v)
	p.settled(nil, v)
	select {
	case <-repaired:
	case <-time.After(repairPatience):
		p.log.Info("Volumes are still being repaired; operations on them wait for the repair", "volumeGroup", p.vgName)
	case <-ctx.Done():
	}
	return nil
}

// amend completes in the metadata what an interruption left undone. Each change may
// fail separately, for example because the metadata area is full or because lvm2
// moves extents. The pool must still open, so that somebody can make room. An error
// means that ctx has ended.
func (p *Pool) amend(ctx context.Context) error {
	for _, c := range []*change{
		{what: "record that the disk is blank", edit: func(t *edit) error {
			if p.blank {
				t.Wiped, t.Changed = t.Free, true
			}
			return nil
		}},
		{what: "remove the names of snapshots that were not cut", edit: p.unname},
		{what: "discard unneeded volumes and layers", edit: (*edit).Tidy},
		{what: "delete idle flat stores", edit: p.discardIdle},
		{what: "protect volumes from lvm2", edit: (*edit).Protect},
	} {
		c.what += " in volume group " + p.vgName
		err := p.do(ctx, c)
		if err != nil && ctx.Err() != nil {
			return err
		}
		if err != nil {
			p.log.Error(err, "Repair was incomplete; it will be retried when the pool is next opened")
		}
	}
	return nil
}

// tidyVolume discards the unneeded parts of a volume. The caller holds the volume's
// key, because a cut creates a layer that nothing needs yet.
func (p *Pool) tidyVolume(ctx context.Context, lv string) error {
	var family []string
	return p.do(ctx, &change{what: "discard unneeded parts of volume " + lv, edit: func(t *edit) error {
		o := t.VolumeByLV(lv)
		if o == nil || !t.Leftover(o) {
			return nil
		}
		family = t.Family(lv)
		return t.TidyOne(o)
	}, act: func(ctx context.Context, v *view) error { return p.retire(ctx, v, family) }})
}

// sweep resumes the devices of trash, and removes those that nobody has open, the
// highest first. Open devices are renamed.
func (p *Pool) sweep(ctx context.Context, v *view) error {
	if len(v.Trash) == 0 {
		return nil
	}
	p.trash.Lock()
	defer p.trash.Unlock()
	gone := map[string]bool{}
	for _, lv := range v.Trash {
		gone[string(lv.ID)] = catalog.Linear(lv) // otherwise LVM2 is moving it
	}
	k, err := p.lookAtLVs(v, gone)
	if err != nil || len(k) == 0 {
		return err
	}
	c := &carrier{Pool: p, view: v, k: k, trashed: true}
	return c.carryOut(ctx, v.want(nil, use{}, running{}, k).plan(nil, k))
}

// lookAtLVs returns the kernel's devices of the logical volumes with the given ids.
func (p *Pool) lookAtLVs(v *view, ids map[string]bool) (kernel, error) {
	all, err := p.dm.List()
	if err != nil {
		return nil, err
	}
	var of []dm.ListEntry
	for _, e := range all {
		if id, _, ours := catalog.SplitUUID(v.VG.ID, e.UUID); ours && ids[id] {
			of = append(of, e)
		}
	}
	return lookAtAll(p.dm, v.VG.ID, of, false)
}
