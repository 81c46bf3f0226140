package pool

import (
	"context"
	"errors"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// recoverFork makes a fork that the kernel has stopped usable again. If its store was full
// (overflow), the kernel only refuses writes. After an I/O error the kernel marks the
// snapshot invalid; a write to part of a chunk whose rest cannot be read is enough. In
// both cases the store has all acknowledged writes.
func (p *Pool) recoverFork(ctx context.Context, lv string) error {
	return p.do(ctx, &change{what: "make volume " + lv + " writable again", act: func(ctx context.Context, v *view) error {
		o := v.VolumeByLV(lv)
		if o == nil || !o.Forked() {
			return nil
		}
		d := v.forkDevice(o.LV)
		status, err := p.snapshotStatus(d.name)
		if err != nil || !status.Overflow && !status.Invalid {
			return err
		}
		l, source, err := v.Origin(o)
		if err == nil && status.Invalid {
			err = p.intact(v, source, l)
		}
		if errors.Is(err, ErrLost) {
			return nil // the fork has no content any more
		}
		if err != nil {
			return err
		}
		// withStoreKey keeps a brake from suspending the store's device. A read of a suspended
		// store would wait for the brake, which waits for this act. The caretaker retries.
		return p.withStoreKey(ctx, o.Fork.LV.ID, func() error {
			store, err := p.find(v.cowDevice(o.Fork.LV))
			if err != nil || store == nil || store.Suspended {
				return err
			}
			fork := headed{lv: o.Fork.LV, chunk: o.Fork.Chunk.Bytes()}
			if why := fork.headerLost(v); why != nil {
				return fork.lost(v, o, why)
			}
			return p.loadAgain(ctx, v, o, status.Invalid)
		})
	}})
}

// loadAgain reloads the table of the fork device of o. If invalid is set, it makes the store
// valid again. A table that replaces a snapshot's table inherits its state, so loadAgain
// loads an error target in between. It suspends the volume meanwhile, so that nobody uses
// the fork device, unless only snapshots of the volume are read.
func (p *Pool) loadAgain(ctx context.Context, v *view, o *catalog.Volume, invalid bool) error {
	k, err := p.convergence(v, o.LV.Name, demand{}).look()
	if err != nil {
		return err
	}
	d, fork, top := v.forkDevice(o.LV), k[v.forkDevice(o.LV).uuid], k[v.topDevice(o.LV).uuid]
	if fork == nil {
		return nil
	}
	become := func(t dm.Table) []step {
		return []step{{do: stepLoad, device: d, of: o, table: disks(t)}, {do: stepResume, device: d, of: o}}
	}
	plan := become(whole(fork.table.Length(), dm.ErrorTarget{}))
	if invalid {
		plan = append(plan, step{do: stepRevive, device: d, of: o})
	}
	plan = append(plan, become(fork.table)...)
	// A held volume must stay suspended, and may have a loaded table for its resume.
	if vol := (step{device: v.topDevice(o.LV), of: o}); top != nil && !(top.Suspended && p.isHeld(v, o)) {
		suspend, resume := vol, vol
		suspend.do, resume.do = stepSuspend, stepResume
		plan = append(append([]step{suspend}, plan...), resume)
	}
	return (&carrier{Pool: p, view: v, k: k}).carryOut(ctx, plan)
}

// reviveStore makes the store of a fork valid again after the kernel marked it invalid.
func (p *Pool) reviveStore(ctx context.Context, v *view, o *catalog.Volume) error {
	d := v.cowDevice(o.Fork.LV)
	info, err := p.find(d)
	if err != nil || info == nil {
		return err
	}
	path, err := p.dm.EnsureNode(ctx, d.name, info.Device)
	if err != nil {
		return err
	}
	p.log.Info("Restored access to a volume that is not hydrated yet and that the kernel stopped after an I/O error", "volume", o.LV.Name)
	return cow.Revive(path)
}
