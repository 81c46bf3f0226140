package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// dropped reports whether a snapshot's device is there and has lost its content.
// An overflow of the heir of a fold is no loss: only our write to it failed.
func (p *Pool) dropped(d device) bool {
	s, err := p.snapshotStatus(d.name)
	return err == nil && s.Invalid
}

// takeDown removes a device if it is there.
func (p *Pool) takeDown(ctx context.Context, d device) error {
	info, err := p.find(d)
	if err != nil || info == nil {
		return err
	}
	return p.removeDevice(ctx, info.Name, d.udev)
}

// removeDevice removes a device that nobody holds, waiting a little for those
// who look at every new device in passing.
func (p *Pool) removeDevice(ctx context.Context, name string, udev dm.Udev) error {
	deadline := time.Now().Add(removeLimit)
	for {
		err := p.dm.Remove(name, udev)
		if err == nil {
			return p.dm.RemoveNode(name)
		}
		if errors.Is(err, dm.ErrNotFound) {
			return nil
		}
		if !errors.Is(err, dm.ErrBusy) {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: %w: something has the device open, see dmsetup info %s and lsof", ErrInUse, err, name)
		}
		select {
		case <-time.After(busyPause):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, context.Cause(ctx))
		}
	}
}
