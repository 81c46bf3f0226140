package pool

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The journal of the file system that a reader shows may need a replay, but the snapshot takes
// no writes. The reader then gets a store, like a fork, and has the devices
//
//	pool-vol            linear    <pool-vol-recovered>, read-only
//	pool-vol-recovered  snapshot  <pool-snapK> <pool-store-cow> PO <chunk>
//
// The caller replays the journal on pool-vol-recovered before pool-vol is made above it. The
// store keeps the result until the volume is deleted.

// layerRecovered is the name layer of the device on which the journal of a reader is replayed.
const layerRecovered = "recovered"

// ReserveRecovery gives a reader a store for room bytes of writes by the replay of a journal,
// unless it has a store. Errors: ErrNotFound, ErrPrecondition, ErrNoSpace.
func (p *Pool) ReserveRecovery(ctx context.Context, lv string, room size.Bytes) error {
	return p.onVolume(ctx, lv, func(ctx context.Context) error {
		return p.do(ctx, &change{what: "make room for the replay of a journal on volume " + lv, edit: func(t *edit) error {
			o, err := t.Recoverable(lv)
			if err != nil || o.Fork != nil {
				return err
			}
			if err := errors.Join(t.Writable(), p.roomForText(t.view())); err != nil {
				return err
			}
			_, source, err := t.ReadFrom(o)
			if err != nil {
				return err
			}
			kind, err := t.KindOf(source)
			if err != nil {
				return err
			}
			n := min(t.Extents(room), t.MostRecovery(o))
			if err := p.checkRoom(t.view(), kind, n); err != nil {
				return fmt.Errorf("the file system that volume %s/%s shows was not clean at the cut, and its journal needs room: %w", t.VG.Name, lv, err)
			}
			return p.addForkStore(t, o.LV, kind, n, catalog.RecoveryChunk)
		}})
	})
}

// Recover calls replay with the path of a writable device that has a reader's content. It
// then returns the path of the volume's own device, which shows the result read-only. room is
// the expected size of the writes in bytes. If room is too small, Recover starts again with
// the snapshot's content and four times the room. Errors: those of ReserveRecovery and of
// replay; ErrInUse.
func (p *Pool) Recover(ctx context.Context, lv string, room size.Bytes, replay func(device string) error) (string, error) {
	for {
		if err := p.ReserveRecovery(ctx, lv, room); err != nil {
			return "", err
		}
		dev, err := p.recoveryUp(ctx, lv)
		if err != nil {
			return "", err
		}
		err = replay(dev.Name())
		full, failed := p.recoveryFull(lv)
		if failed = errors.Join(failed, dev.Close()); failed != nil {
			return "", errors.Join(err, failed, p.recoveryDown(ctx, lv, false))
		}
		if err == nil && !full {
			return p.Activate(ctx, lv)
		}
		if failed = p.recoveryDown(ctx, lv, full); !full || failed != nil {
			return "", errors.Join(err, failed)
		}
		p.log.Info("The replay of a journal needs more room than expected", "volume", lv, "had", room, "err", err)
		room *= 4
	}
}

// recoveryUp makes and opens the device for the replay of a journal. It opens the device
// because a convergence removes a device that nobody has open. It removes the volume's own
// device, because a device below another device cannot be mounted.
func (p *Pool) recoveryUp(ctx context.Context, lv string) (*os.File, error) {
	if err := p.flattenBelow(ctx, lv); err != nil {
		return nil, fmt.Errorf("recover volume %s: %w", lv, err)
	}
	return run(ctx, &p.group, []string{lvKey(lv)}, func(ctx context.Context) (file *os.File, err error) {
		err = p.do(ctx, &change{what: "recover volume " + lv, act: func(ctx context.Context, v *view) error {
			o, err := v.Recoverable(lv)
			if err != nil {
				return err
			}
			if err := p.down(ctx, v, o); err != nil {
				return err
			}
			if err := p.forkUp(ctx, v, o); err != nil {
				return err
			}
			d := v.device(o.LV, layerRecovered, udevReal)
			info, err := p.found(d)
			if err != nil {
				return err
			}
			path, err := p.dm.EnsureNode(ctx, info.Name, info.Device)
			if err == nil {
				file, err = os.Open(path)
			}
			return err
		}})
		return file, err
	})
}

// recoveryFull reports whether the store was too small for the writes.
func (p *Pool) recoveryFull(lv string) (bool, error) {
	v, err := p.latest()
	if err != nil {
		return false, err
	}
	o, err := v.Recoverable(lv)
	if err != nil {
		return false, err
	}
	s, err := p.snapshotStatus(v.device(o.LV, layerRecovered, udevReal).name)
	return err == nil && (s.Overflow || s.Invalid), err
}

// recoveryDown removes the devices of a reader whose replay failed. If small is set, it also
// deletes the store.
func (p *Pool) recoveryDown(ctx context.Context, lv string, small bool) error {
	return p.onVolume(ctx, lv, func(ctx context.Context) error {
		if err := p.deactivate(ctx, lv); err != nil || !small {
			return err
		}
		return p.do(ctx, &change{what: "give back the room for the replay of a journal on volume " + lv, edit: func(t *edit) error {
			o, err := t.Recoverable(lv)
			switch {
			case err != nil || o.Fork == nil:
				return err
			case o.Fork.LV.Size() >= t.MostRecovery(o):
				return fmt.Errorf("volume %s/%s: %w: the kernel could not write to all of the room for the replay of its journal", t.VG.Name, lv, ErrLost)
			}
			return t.Discard(o.Fork.LV)
		}})
	})
}
