package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

const holdPause = 100 * time.Millisecond

// lockPool takes the lock that allows one process on this machine to run the pool's
// engine. A second engine would mistake the devices and unfinished work of the
// first for leftovers.
func lockPool(ctx context.Context, dir, vg string) (release func() error, err error) {
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
			return f.Close, nil // closing the file releases the lock
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

// openGroup finds the pool's volume group, or creates it if the configuration
// allows that.
func (p *Pool) openGroup(ctx context.Context) (*lvm2.Store, error) {
	create, blank := p.config.Create, false
	if p.config.File != "" {
		_, fresh, err := attachFile(p.config.File, p.config.Size)
		if err != nil {
			return nil, err
		}
		create, blank = true, fresh
	}
	search := p.search()
	store, err := lvm2.FindVG(ctx, p.host, p.vgName, search)
	if err != nil && !errors.Is(err, lvm2.ErrNotFound) {
		return nil, p.config.notOpened(err)
	}
	if err == nil && !create {
		return store, nil
	}
	switch {
	case store != nil:
		p.extendAtOpening(ctx, store)
		return store, nil
	case !create || len(p.config.VolumeGroupIDs) > 0:
		return nil, p.config.notFound(err)
	}
	if err := p.createGroup(ctx); err != nil {
		return nil, unavailable(err)
	}
	p.blank = blank
	if store, err = lvm2.FindVG(ctx, p.host, p.vgName, search); err != nil {
		return nil, unavailable(err)
	}
	return store, nil
}

// createGroup creates the volume group from the fit devices.
func (p *Pool) createGroup(ctx context.Context) error {
	devices, left, err := p.config.choose(nil)
	if err != nil {
		return err
	}
	if err := p.config.hindrance(devices, left); err != nil {
		p.outside.leaveOut(p.log, left)
		return err
	}
	if err := p.config.checkElsewhere(ctx, p.host); err != nil {
		return err
	}
	devices, other, err := ofOneKind(devices)
	if err != nil {
		return err
	}
	p.outside.leaveOut(p.log, append(left, other...))
	if err := lvm2.CreateVG(ctx, p.host, p.vgName, devices, lvm2.CreateOptions{ExtentSize: p.config.ExtentSize, Namesake: true}); err != nil {
		return err
	}
	p.log.Info("Created volume group", "volumeGroup", p.vgName, "devices", devices)
	return nil
}

// enterFile enters the loop device of the pool's file in lvm2's devices file again,
// if necessary. lvm2 identifies the loop device by the backing path that the kernel
// reports. That path changes after the container that attached the file is gone.
func (p *Pool) enterFile(ctx context.Context, vg *lvm2.VG) {
	for _, pv := range vg.PVs {
		if pv.Device == "" {
			continue
		}
		if err := p.host.Enter(ctx, pv.Device, pv.ID); err != nil {
			p.log.Error(err, "Failed to enter the loop device of the pool's file in lvm2's devices file", "device", pv.Device)
		}
	}
}

// readGroup reads the group from the disks.
func (p *Pool) readGroup(ctx context.Context, store *lvm2.Store) (vg *lvm2.VG, err error) {
	lock, err := p.host.LockVG(ctx, p.vgName, lvm2.Shared)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	return store.Read(ctx)
}
