package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

const holdPause = 100 * time.Millisecond

// hold takes the exclusive right to run a pool's engine on this machine. Two
// would each think that devices and unfinished work of the other are leftovers.
func hold(ctx context.Context, dir, vg string) (release func() error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, vg+".lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f.Close, nil // closing releases
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
		}
		select {
		case <-time.After(holdPause):
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%w: another process runs this pool and holds %s: %w", ErrUnavailable, path, context.Cause(ctx)), f.Close())
		}
	}
}

// openGroup finds the pool's volume group, or makes it where the configuration says so.
func (p *Pool) openGroup(ctx context.Context) (*lvm2.Store, error) {
	create, blank := p.config.Create, false
	if p.config.File != "" {
		_, fresh, err := attachFile(p.config.File, p.config.Size)
		if err != nil {
			return nil, err
		}
		create, blank = true, fresh
	}
	search := p.config.search(p.host)
	store, err := lvm2.FindVG(ctx, p.host, p.vgName, search)
	if err != nil && !errors.Is(err, lvm2.ErrNotFound) {
		return nil, p.config.notOpened(err)
	}
	if err == nil && !create {
		return store, nil
	}
	var devices []string
	if create {
		if devices, err = p.config.devices(); err != nil {
			return nil, err
		}
	}
	switch {
	case store != nil:
		p.extendGroup(ctx, store, devices)
		return store, nil
	case !create || len(p.config.VolumeGroupIDs) > 0:
		return nil, p.config.notFound(err)
	case len(devices) == 0:
		return nil, fmt.Errorf("%w: no device matches %s", ErrUnavailable, strings.Join(p.config.Devices, " "))
	}
	if err := p.config.checkElsewhere(ctx, p.host); err != nil {
		return nil, err
	}
	devices, refused, err := ofOneKind(devices)
	if err != nil {
		return nil, err
	}
	p.refuse(refused...)
	if err := lvm2.CreateVG(ctx, p.host, p.vgName, devices, lvm2.CreateOptions{Namesake: true}); err != nil {
		return nil, unavailable(err)
	}
	p.blank = blank
	p.log.Info("Created volume group", "volumeGroup", p.vgName, "devices", devices)
	if store, err = lvm2.FindVG(ctx, p.host, p.vgName, search); err != nil {
		return nil, unavailable(err)
	}
	return store, nil
}

// extendGroup adds those of the configured devices that are blank. One that
// holds something is left alone: it must not keep the pool from being served.
func (p *Pool) extendGroup(ctx context.Context, store *lvm2.Store, devices []string) {
	ours, err := p.physicalVolumes(ctx, store)
	if err != nil {
		p.log.Error(err, "The volume group was not extended")
		return
	}
	for _, d := range devices {
		// A pattern may match links: what counts is the device behind them.
		dev, err := dm.DeviceOf(d)
		if err == nil && slices.Contains(ours, dev) {
			continue
		}
		err = store.Extend(ctx, []string{d})
		switch {
		case errors.Is(err, lvm2.ErrBlockSize):
			p.refuse(err.Error())
		case err != nil:
			p.log.Error(err, "A device that matches the configuration was not added to the volume group", "device", d)
		default:
			p.log.Info("Added a device to the volume group", "volumeGroup", p.vgName, "device", d)
		}
	}
}

// refuse notes why devices that the configuration names are not the pool's.
func (p *Pool) refuse(why ...string) {
	for _, w := range why {
		p.log.Info("A device that matches the configuration is refused", "why", w)
	}
	p.refused = append(p.refused, why...)
}

// physicalVolumes lists the devices that the group has.
func (p *Pool) physicalVolumes(ctx context.Context, store *lvm2.Store) (devices []dm.Device, err error) {
	lock, err := p.host.LockVG(ctx, p.vgName, lvm2.Shared)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	vg, err := store.Read(ctx)
	if err != nil {
		return nil, err
	}
	for _, pv := range vg.PVs {
		if dev, err := dm.DeviceOf(pv.Device); err == nil {
			devices = append(devices, dev)
		}
	}
	return devices, nil
}
