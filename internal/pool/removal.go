package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// dropped reports whether the snapshot device d exists and the kernel has marked it invalid.
// An overflow of the heir of a fold does not count: only a write by the driver failed.
func (p *Pool) dropped(d device) bool {
	s, err := p.snapshotStatus(d.name)
	return err == nil && s.Invalid
}

// takeDown removes a device if it exists.
func (p *Pool) takeDown(ctx context.Context, d device) error {
	info, err := p.find(d)
	if err != nil || info == nil {
		return err
	}
	return p.removeDevice(ctx, info.Name, d.udev)
}

// removeDevice removes a device. It waits up to removeLimit for programs that scan every
// new device. Errors: ErrInUse if the device stays open.
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
			return fmt.Errorf("%w: %w: the device is open; see dmsetup info %s and lsof", ErrInUse, err, name)
		}
		select {
		case <-time.After(busyPause):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, context.Cause(ctx))
		}
	}
}
