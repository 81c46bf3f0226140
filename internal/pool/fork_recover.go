package pool

import (
	"context"
	"errors"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// recoverFork lets a fork be used again that the kernel has stopped. One whose
// store was full is only refused writes. One with an I/O error is given up: it is enough
// that a part of a chunk is written of which the rest cannot be read. What was
// acknowledged is in its store in both cases.
func (p *Pool) recoverFork(ctx context.Context, lv string) error {
	return p.do(ctx, &change{what: "let volume " + lv + " be written again", act: func(ctx context.Context, v *view) error {
		o := v.volumeByLV(lv)
		if o == nil || !o.forked() {
			return nil
		}
		d := v.forkDevice(o.lv)
		status, err := p.snapshotStatus(d.name)
		if err != nil || !status.Overflow && !status.Invalid {
			return err
		}
		l, source, err := v.origin(o)
		if err == nil && status.Invalid {
			err = p.intact(v, source, l)
		}
		if errors.Is(err, ErrLost) {
			return nil // there is nothing that it could show
		}
		if err != nil {
			return err
		}
		// The store's device stays as it is meanwhile: reading it while a brake has it
		// suspended would wait for who waits for us. It is tried again.
		return p.alone(ctx, o.fork.lv.ID, func() error {
			store, err := p.find(v.cowDevice(o.fork.lv))
			if err != nil || store == nil || store.Suspended {
				return err
			}
			return p.loadAgain(ctx, v, o, status.Invalid)
		})
	}})
}

// loadAgain gives the snapshot by which a fork is read its table anew, with a store that
// is taken back if the kernel gave it up. A table that takes the former one's place
// inherits its state, so there is another one in between. Nobody uses the device
// meanwhile: what lies on it is suspended, unless only snapshots of the volume are read.
func (p *Pool) loadAgain(ctx context.Context, v *view, o *volume, invalid bool) error {
	k, err := p.convergence(v, o.lv.Name, demand{}).look()
	if err != nil {
		return err
	}
	d, fork, top := v.forkDevice(o.lv), k[v.forkDevice(o.lv).uuid], k[v.topDevice(o.lv).uuid]
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
	// A volume that is held must not go on, and may have a table that it is to go on with.
	if vol := (step{device: v.topDevice(o.lv), of: o}); top != nil && !(top.Suspended && p.isHeld(v, o)) {
		suspend, resume := vol, vol
		suspend.do, resume.do = stepSuspend, stepResume
		plan = append(append([]step{suspend}, plan...), resume)
	}
	return (&carrier{Pool: p, view: v, k: k}).carryOut(ctx, plan)
}

// reviveStore takes back that the kernel gave up the store of what was written to a fork.
func (p *Pool) reviveStore(ctx context.Context, v *view, o *volume) error {
	d := v.cowDevice(o.fork.lv)
	info, err := p.find(d)
	if err != nil || info == nil {
		return err
	}
	path, err := p.dm.EnsureNode(ctx, d.name, info.Device)
	if err != nil {
		return err
	}
	p.log.Info("The kernel gave up a volume that is not hydrated, after an I/O error; it is brought back", "volume", o.lv.Name)
	return cow.Revive(path)
}
