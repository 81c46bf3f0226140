package pool

import (
	"context"
	"errors"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// storeLimit bounds the time for reading a store. LVM2's lock is held during the
// read, so that the device does not change. A driver must be able to extend a store
// before it is full.
const storeLimit = time.Second

const notActive = "not active"

// checkStore reads the exception store of a layer, if the store's device is active.
func (i *inspector) checkStore(ctx context.Context, id lvm2.ID, r *report) error {
	return i.locked(ctx, func(v *view) error {
		l := v.Layers.Get(id)
		if l == nil {
			return nil // deleted in the meantime
		}
		unread := func(why string) { r.unread = append(r.unread, Unread{r.At(l.LV), why}) }
		p := i.pool
		snap, err := p.find(v.snapDevice(l.LV))
		if err != nil {
			return err
		}
		store, err := p.find(v.cowDevice(l.LV))
		if err != nil {
			return err
		}
		if snap == nil || !snap.Live || store == nil || !store.Live {
			unread(notActive)
			return nil
		}
		if store.Suspended {
			unread("its device is suspended") // reading it would wait
			return nil
		}
		status, err := p.snapshotStatus(snap.Name)
		if err != nil || status.Invalid || status.Overflow {
			return err // a loss is reported elsewhere
		}
		path := p.dm.Node(store.Name)
		if have, err := dm.DeviceOf(path); err != nil || have != store.Device {
			unread(path + " is not the node of its device")
			return nil
		}
		limited, cancel := context.WithTimeout(ctx, storeLimit)
		defer cancel()
		err = r.readStore(limited, path, l, func() (dm.SnapshotStatus, error) { return p.snapshotStatus(snap.Name) })
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			unread("reading all of it takes longer than others can wait")
			return nil
		}
		return err
	})
}

// untrusted is the advice for a store that lists impossible chunks.
const untrusted = "delete the snapshot and the older ones of its volume, which cannot be trusted"

// badStore reports an error that means that a store has wrong content. It returns
// other errors.
func (r *report) badStore(at string, err error) error {
	for _, known := range []error{cow.ErrFresh, cow.ErrNotStore, cow.ErrDamaged, cow.ErrInvalid} {
		if errors.Is(err, known) {
			r.Add("BadStore", at, untrusted, "%v", err)
			return nil
		}
	}
	return err
}

// readStore compares a store with its layer's tags and the kernel's status.
func (r *report) readStore(ctx context.Context, path string, l *catalog.Layer, status func() (dm.SnapshotStatus, error)) (err error) {
	at := r.At(l.LV)
	store, err := cow.Open(path)
	if err != nil {
		return r.badStore(at, err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	header, err := store.Header()
	if err != nil {
		return err
	}
	if header.Chunk != l.Chunk.Bytes() {
		r.Add("WrongChunk", at, catalog.RestoreGroup, "the store has chunks of %v, but our tags say %v", header.Chunk, l.Chunk.Bytes())
		return nil
	}
	chunks := uint64(l.Length.Bytes().RoundUp(header.Chunk) / header.Chunk)
	seen, count := make([]uint64, chunks/64+1), uint64(0)
	for e, err := range store.Exceptions(ctx) {
		if err != nil {
			return r.badStore(at, err)
		}
		if e.Origin >= chunks {
			r.Add("BadStore", at, untrusted, "it lists chunk %d, but its volume had only %d chunks at the cut", e.Origin, chunks)
			return nil
		}
		if bit := uint64(1) << (e.Origin % 64); seen[e.Origin/64]&bit == 0 {
			seen[e.Origin/64] |= bit
		} else {
			r.Add("BadStore", at, untrusted, "it lists chunk %d twice", e.Origin)
			return nil
		}
		count++
	}
	if l.Snap == nil {
		// When its device was moved below a newer layer, the kernel may have copied
		// chunks into the store that the kernel's status does not count. The newer
		// layer holds them too.
		return nil
	}
	s, err := status()
	if err != nil || s.Invalid || s.Overflow || s.NoUsage {
		return err
	}
	if least := cow.UsedSectors(header.Chunk, count); s.Used < least {
		r.Add("BadStore", at, untrusted, "it lists %d chunks, which take %v, but the kernel says that only %v are in use", count, least.Bytes(), s.Used.Bytes())
	}
	return nil
}
