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

// recoverReader makes sure that a read-only volume shows everything that its file
// system has acknowledged. If part of that is only in the journal, recoverReader
// replays the journal into a store of the volume's own. It never replays on LVM2's
// own logical volumes. Errors: FAILED_PRECONDITION, those of pool.Recover.
func recoverReader(ctx context.Context, p *pool.Pool, v pool.Volume, i handle.ID, device filesystem.Device) error {
	if !device.ReadOnly {
		return nil // the mount replays the journal
	}
	room, err := replayRoom(device)
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

// replayRoom returns how many bytes a replay of the journal is likely to write; 0
// if nothing must be replayed.
func replayRoom(device filesystem.Device) (size.Bytes, error) {
	ok, err := device.Clean()
	if ok || err != nil {
		return 0, err
	}
	return device.ReplayRoom()
}

// reserveRecovery reserves room for a replay of the journal, if a new read-only
// volume needs one. Without room the claim waits, rather than its pod. If the
// journal cannot be read now, the stage checks it again. Errors: those of
// pool.ReserveRecovery.
func reserveRecovery(ctx context.Context, p *pool.Pool, v pool.Volume) error {
	if !v.ReadOnly || v.Mode != pool.Filesystem || !filesystem.Supported(v.FSType) {
		return nil
	}
	postponed := func(err error) {
		klog.FromContext(ctx).Info("The journal of a read-only volume is checked when the volume is staged", "volume", v.LV, "err", err)
	}
	path, err := p.Activate(ctx, v.LV)
	if err != nil {
		postponed(err)
		return nil
	}
	room, err := replayRoom(filesystem.Device{Path: path, Type: v.FSType, ReadOnly: true})
	switch {
	case err != nil:
		postponed(err)
		err = nil
	case room > 0:
		err = p.ReserveRecovery(ctx, v.LV, room)
	}
	if failed := p.Deactivate(ctx, v.LV); failed != nil && !errors.Is(failed, pool.ErrInUse) {
		err = errors.Join(err, failed)
	}
	return err
}
