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

// loadAgain gives the snapshot by which a fork is read its table anew, with a
// store that is taken back if the kernel gave it up.
func (p *Pool) loadAgain(ctx context.Context, v *view, o *volume, invalid bool) error {
	d := v.forkDevice(o.lv)
	table, err := p.dm.Table(d.name)
	if err != nil {
		return err
	}
	// A table that takes the former one's place inherits its state. Nobody
	// uses the device while it has none.
	become := func(t dm.Table) error {
		if err := p.dm.Load(d.name, t, false); err != nil {
			return err
		}
		return p.dm.Resume(d.name, d.udev)
	}
	inside := func() error {
		if err := become(whole(table.Length(), dm.ErrorTarget{})); err != nil {
			return err
		}
		if invalid {
			err = p.reviveStore(ctx, v, o)
		}
		return errors.Join(err, become(table)) // also after an error: it is tried again
	}
	vol := v.topDevice(o.lv)
	info, err := p.find(vol)
	if err != nil {
		return err
	}
	// If it is not there only its snapshots are read. If it is held it must not be
	// resumed, and may have a table that it is to go on with.
	if info == nil || info.Suspended && p.isHeld(v, o) {
		return inside()
	}
	return p.swap(ctx, vol, false, dm.SuspendOptions{SkipLockFS: true}, inside)
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
