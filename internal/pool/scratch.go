package pool

import (
	"context"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// A transient volume is a reader that can be written:
//
//	pool-vol      snapshot  <pool-snapK> <pool-vol-cow> N <chunk>
//	pool-vol-cow  linear    the volume's own extents
//
// The kernel keeps the list of written chunks in its memory. It places the chunks one after
// another on the store, from the first sector on (dm-snap-transient.c), so a store that is
// as long as the volume is never full. The driver keeps the device from the first activation
// until the volume is deleted. If the device is lost, as by a reboot, the volume has its
// snapshot's content again.

// scratchChunk returns the largest chunk size up to most that divides a volume's length.
func scratchChunk(most, length size.Bytes) (size.Sectors, error) {
	for chunk := most; chunk >= cow.MinChunk; chunk /= 2 {
		if length%chunk == 0 {
			return chunk.Sectors(), nil
		}
	}
	return 0, fmt.Errorf("%w: the size of the snapshot, %v, is not a multiple of %v, which a transient volume needs", ErrPrecondition, length, cow.MinChunk)
}

// scratchKept reports whether a transient volume still has its writes. If the kernel has
// marked the device invalid, and nobody has it open, scratchKept removes the device.
func (p *Pool) scratchKept(ctx context.Context, v *view, o *catalog.Volume) (bool, error) {
	info, err := p.find(v.topDevice(o.LV))
	if err != nil || info == nil || !info.Live {
		return false, err
	}
	s, err := p.snapshotStatus(info.Name)
	if err != nil || !s.Invalid {
		return err == nil, err
	}
	if info.OpenCount > 0 {
		return false, fmt.Errorf("volume %s/%s: %w: the kernel dropped the data written to it, and its device is still open", v.VG.Name, o.LV.Name, ErrInUse)
	}
	return false, p.down(ctx, v, o)
}

// startOver marks a transient volume as unformatted again if its snapshot has no file system
// and the volume has lost the file system made since.
func (p *Pool) startOver(ctx context.Context, lv string) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	if o := v.VolumeByLV(lv); o == nil || !o.Transient || !o.Begun || v.Layers.Get(o.Reads) == nil || !v.Layers.Get(o.Reads).Blank {
		return nil
	}
	return p.onVolume(ctx, lv, func(ctx context.Context) error {
		kept := true
		err := p.do(ctx, &change{what: "check for data written to volume " + lv, act: func(ctx context.Context, v *view) (err error) {
			if o := v.VolumeByLV(lv); o != nil {
				kept, err = p.scratchKept(ctx, v, o)
			}
			return err
		}})
		if err != nil || kept {
			return err
		}
		return p.do(ctx, &change{what: "record that volume " + lv + " begins again", edit: func(t *edit) error {
			o := t.VolumeByLV(lv)
			if o == nil || t.Layers.Get(o.Reads) == nil {
				return nil
			}
			return t.StartOver(o, t.Layers.Get(o.Reads))
		}})
	})
}

// noteScratch records that a transient volume was activated, and whether its earlier writes
// are lost.
func (p *Pool) noteScratch(ctx context.Context, lv string, lost bool) error {
	return p.do(ctx, &change{what: "record the activation of volume " + lv, edit: func(t *edit) error {
		o := t.VolumeByLV(lv)
		if o == nil || o.Begun && !lost {
			return nil
		}
		return t.SetBegun(o, lost)
	}})
}

// unnoteScratch clears the record that a transient volume has lost its writes, because its
// user has finished.
func (p *Pool) unnoteScratch(ctx context.Context, lv string) error {
	return p.onVolume(ctx, lv, func(ctx context.Context) error {
		return p.do(ctx, &change{what: "record the end of use of volume " + lv, edit: func(t *edit) error {
			o := t.VolumeByLV(lv)
			if o == nil || !o.Reset {
				return nil
			}
			return t.ForgetReset(o)
		}})
	})
}

// scratchHealth returns a condition if a transient volume has lost its writes.
func (p *Pool) scratchHealth(v *view, o *catalog.Volume) []Condition {
	if !o.Transient {
		return nil
	}
	if s, err := p.statusSoon(v.topDevice(o.LV).name); err == nil && s.Invalid {
		return []Condition{{DataLoss, "TransientLost", "the kernel dropped the data written to it, after an I/O error or for lack of memory, so reads fail; stage the volume again"}}
	}
	if o.Reset {
		return []Condition{{Degraded, "TransientRestarted", "the data written to it was lost, as by a reboot, so it began again with the snapshot's content"}}
	}
	return nil
}
