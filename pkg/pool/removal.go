package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// dropSnapshots removes the devices over the volume's -real device, with their stores, and then that.
func (p *Pool) dropSnapshots(ctx context.Context, v *view, o *volume) error {
	base := p.device(v, o.lv, layerReal, udevReal)
	info, err := p.find(base)
	if err != nil || info == nil {
		return err
	}
	users, err := p.usersOf(info.Device)
	if err != nil {
		return err
	}
	for _, u := range users {
		// The snapshot's UUID ends in its own id; with "-cow" it is its store's.
		if err := p.takeDown(ctx, device{name: u.Name, uuid: u.UUID, udev: udevSnapshot}, p.storeOf(u.UUID)); err != nil {
			return err
		}
	}
	return p.takeDown(ctx, base)
}

func (p *Pool) storeOf(uuid string) device {
	d := device{uuid: uuid + "-" + layerCOW, udev: udevCOW}
	if info, err := p.find(d); err == nil && info != nil {
		d.name = info.Name
	}
	return d
}

// usersOf lists the devices whose table names dev.
func (p *Pool) usersOf(dev dm.Device) ([]dm.ListEntry, error) {
	all, err := p.dm.List()
	if err != nil {
		return nil, err
	}
	var users []dm.ListEntry
	for _, e := range all {
		deps, err := p.dm.Deps(e.Name)
		if errors.Is(err, dm.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, d := range deps {
			if d == dev {
				users = append(users, e)
				break
			}
		}
	}
	return users, nil
}

// takeDown removes devices in the given order, those that exist.
func (p *Pool) takeDown(ctx context.Context, devices ...device) error {
	for _, d := range devices {
		info, err := p.find(d)
		if err != nil {
			return err
		}
		if info == nil {
			continue
		}
		if err := p.removeDevice(ctx, info.Name, d.udev); err != nil {
			return err
		}
	}
	return nil
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
