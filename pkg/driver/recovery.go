package driver

import (
	"context"
	"errors"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// recoverShown sees to it that a volume for readers only shows what its file
// system has acknowledged: if that lies in the journal it is replayed, in a store
// of the volume's own. Nothing is ever replayed on a logical volume of LVM2's.
func recoverShown(ctx context.Context, p *pool.Pool, v pool.Volume, i handle.ID, device filesystem.Device) error {
	if !device.ReadOnly {
		return nil // the mount does it
	}
	room, err := missingRoom(device)
	if err != nil || room == 0 {
		return err
	}
	if v.Foreign {
		return precondition("logical volume %s is read-only, and %v; make it writable and mount it once, or make a writable snapshot of it", v.LV, filesystem.ErrUnclean)
	}
	klog.FromContext(ctx).Info("Replaying the journal of a read-only volume", "type", device.Type)
	_, err = p.Recover(ctx, v.LV, room, func(path string) error {
		d := filesystem.Device{Path: path, Type: device.Type, Copy: true}
		if err := d.SetIdentity(i.String()); err != nil {
			return err
		}
		return d.Replay()
	})
	return err
}

// missingRoom returns how much a replay of the journal is likely to write; 0 if
// nothing has to be replayed.
func missingRoom(device filesystem.Device) (size.Bytes, error) {
	ok, err := device.Clean()
	if ok || err != nil {
		return 0, err
	}
	return device.ReplayRoom()
}

// reserveRecovery sees to it that a new volume for readers only has room for the
// replay of the journal, if what it shows needs one: the claim and not its pod has to
// wait where there is none. If it cannot look, the stage will.
func reserveRecovery(ctx context.Context, p *pool.Pool, v pool.Volume) error {
	if !v.ReadOnly || v.Mode != pool.Filesystem || !filesystem.Supported(v.FSType) {
		return nil
	}
	path, err := p.Activate(ctx, v.LV)
	if err != nil {
		klog.FromContext(ctx).Info("Leaving the journal check of a read-only volume to its stage", "volume", v.LV, "err", err)
		return nil
	}
	room, err := missingRoom(filesystem.Device{Path: path, Type: v.FSType, ReadOnly: true})
	switch {
	case err != nil:
		klog.FromContext(ctx).Info("Leaving the journal check of a read-only volume to its stage", "volume", v.LV, "err", err)
		err = nil
	case room > 0:
		err = p.ReserveRecovery(ctx, v.LV, room)
	}
	if failed := p.Deactivate(ctx, v.LV); failed != nil && !errors.Is(failed, pool.ErrInUse) {
		err = errors.Join(err, failed)
	}
	return err
}
