package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// unwiped returns the extents of o that must be zeroed before anybody sees them. A
// block volume shows all its extents. A file system shows only the blocks that were
// written after it was made. If the pool cleans at first use, all extents of either
// kind are zeroed, so that the volume can become a block device later. Volumes that
// read through a snapshot are the exception, because zeroing would first copy the
// snapshot's content.
func (p *Pool) unwiped(v *view, o *catalog.Volume) catalog.RangeSet {
	switch {
	case o.ReadOnly:
		return nil // it has no extents; Presentable refuses it
	case o.Copying != nil:
		return nil // the copy overwrites it, and nobody sees it before
	case o.Mode == Block:
		return o.Unknown
	case o.Formatted:
		return nil
	}
	must := v.Edges(o)
	if o.From() == "" {
		must = must.Union(p.atFirstUse(v, o.LV))
	}
	return o.Unknown.Intersect(must)
}

// scrub makes sure that nobody reads an earlier owner's bytes from the volume.
func (p *Pool) scrub(ctx context.Context, lv string) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	o := v.VolumeByLV(lv)
	if o == nil || len(p.unwiped(v, o)) == 0 {
		return nil
	}
	// Zeroing a part that a fork still reads through would fill the fork's store,
	// and would wait for a hydration that waits for the volume's key.
	for o.Mode == Block && v.ReadsUnknown(o) {
		select {
		case <-time.After(busyPause):
		case <-ctx.Done():
			return &PendingError{What: "hydrating volume " + lv + ", parts of which must be wiped afterwards"}
		}
		if v, err = p.latest(); err != nil {
			return err
		}
		if o = v.VolumeByLV(lv); o == nil || len(p.unwiped(v, o)) == 0 {
			return nil
		}
	}
	return p.wiper.scrubs.await(ctx, p, lv, "wiping volume "+lv, func() (*job, error) {
		return &job{total: uint64(size.Bytes(p.unwiped(v, o).Size()) * v.ExtentSize())}, nil
	}, func(ctx context.Context, j *job) error {
		if err := p.flattenBelow(ctx, lv); err != nil {
			return err
		}
		return p.onVolume(ctx, lv, func(ctx context.Context) error { return p.scrubNow(ctx, lv, j) })
	})
}

// scrubbing reports whether the driver is zeroing the volume. Then nobody else
// writes to it.
func (p *Pool) scrubbing(lv string) bool {
	j := p.wiper.scrubs.of(lv)
	return j != nil && j.writing.Load()
}

// scrubNow zeroes the unwiped extents through a device of the volume, and records
// that. The caller holds the volume's key. The open device keeps LVM2 away from the
// volume.
func (p *Pool) scrubNow(ctx context.Context, lv string, j *job) (err error) {
	var was *view
	var o *catalog.Volume
	var f *os.File
	err = p.do(ctx, &change{what: "wipe volume " + lv, act: func(ctx context.Context, v *view) (err error) {
		was, o = v, v.VolumeByLV(lv)
		if o == nil || len(p.unwiped(v, o)) == 0 {
			return nil
		}
		if why := o.Theirs(); why != "" {
			return fmt.Errorf("volume %s/%s: %w: %s", v.VG.Name, lv, ErrPrecondition, why)
		}
		if info, err := p.find(v.topDevice(o.LV)); err != nil || info != nil && info.OpenCount > 0 {
			return err // already in use, so it was scrubbed before
		}
		j.writing.Store(true)
		f, err = p.openToScrub(ctx, v, o)
		return err
	}})
	defer j.writing.Store(false)
	if err != nil || f == nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	todo := p.unwiped(was, o)
	progress := func(n size.Bytes) { j.done.Add(uint64(n)) }
	for _, r := range todo {
		if err := zeroDevice(ctx, f, size.Bytes(r.Start)*was.ExtentSize(), size.Bytes(r.Count)*was.ExtentSize(), progress); err != nil {
			return err
		}
	}
	return p.do(ctx, &change{what: "record that volume " + lv + " was wiped", edit: func(t *edit) error {
		now := t.VolumeByLV(lv)
		if now == nil {
			return nil
		}
		if !catalog.SameExtents(was.VG, o.LV, t.VG, now.LV) {
			return fmt.Errorf("volume %s/%s: %w: LVM2 moved or resized it while it was wiped", t.VG.Name, lv, ErrPrecondition)
		}
		return t.SetWiped(now, todo)
	}})
}

// openToScrub opens the device with the volume's content. If the volume has a
// snapshot, that is the device below the snapshot, so that zeroing does not copy
// the old bytes into the snapshot's store.
func (p *Pool) openToScrub(ctx context.Context, v *view, o *catalog.Volume) (*os.File, error) {
	d := v.topDevice(o.LV)
	if o.Transient {
		if err := p.up(ctx, v, o); err != nil {
			return nil, err
		}
		return p.openPath(p.dm.Node(d.name), d)
	}
	table, err := p.blocks(ctx, v, o)
	if err != nil {
		return nil, err
	}
	if o.Live() != nil {
		d = v.realDevice(o.LV)
	}
	return p.openDevice(ctx, v, d, table)
}
