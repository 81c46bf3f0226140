package pool

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Activate makes the volume's device and returns its path; read-only if the
// volume is. An active one stays as it is. Where the volume's extents may hold
// an earlier owner's bytes a block volume is zeroed first (*PendingError
// meanwhile, the work goes on), and of a file system that is yet to be made the
// first and last MiB, so that nothing finds an old signature.
func (p *Pool) Activate(ctx context.Context, lv string) (string, error) {
	if err := p.scrub(ctx, lv); err != nil {
		return "", err
	}
	return run(ctx, p, []string{lvKey(lv)}, func(ctx context.Context) (path string, err error) {
		err = p.do(ctx, &change{what: "activate volume " + lv, act: func(ctx context.Context, v *view) error {
			o, err := v.usable(lv)
			if err != nil {
				return err
			}
			if o.mode == Block && len(o.unknown) > 0 {
				return &PendingError{What: "wiping volume " + lv}
			}
			if err := p.up(ctx, v, o); err != nil {
				return err
			}
			path = p.dm.Node(p.device(v, o.lv, "", udevVisible).name)
			return nil
		}})
		return path, err
	})
}

// Deactivate takes the volume's device away; nil if it has none. ErrInUse if it is open.
func (p *Pool) Deactivate(ctx context.Context, lv string) error {
	_, err := run(ctx, p, []string{lvKey(lv)}, func(ctx context.Context) (none struct{}, err error) {
		if err := p.waitClosed(ctx, lv); err != nil {
			return none, err
		}
		return none, p.do(ctx, &change{what: "deactivate volume " + lv, act: func(ctx context.Context, v *view) error {
			if o := v.volumeByLV(lv); o != nil {
				return p.down(ctx, v, o)
			}
			return nil
		}})
	})
	return err
}

// waitClosed waits a little until nobody has the volume's device open: who
// looks at devices in passing has it open for moments. No lock is held.
func (p *Pool) waitClosed(ctx context.Context, lv string) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	o := v.volumeByLV(lv)
	if o == nil {
		return nil
	}
	for deadline := time.Now().Add(busyLimit); ; {
		info, err := p.find(p.device(v, o.lv, "", udevVisible))
		if err != nil || info == nil || info.OpenCount == 0 {
			return err
		}
		at, err := mountPoint(info.Device)
		if err != nil {
			return err
		}
		if at != "" {
			return fmt.Errorf("volume %s/%s: %w: it is mounted at %s", v.vg.Name, lv, ErrInUse, at)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("volume %s/%s: %w: its device %s is open %d times, by a process, another device or a mount elsewhere",
				v.vg.Name, lv, ErrInUse, info.Name, info.OpenCount)
		}
		select {
		case <-time.After(busyPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// SetFormatted records that the volume has a file system and must never get another.
func (p *Pool) SetFormatted(ctx context.Context, lv string) error {
	_, err := run(ctx, p, []string{lvKey(lv)}, func(ctx context.Context) (none struct{}, err error) {
		return none, p.do(ctx, &change{what: "mark volume " + lv + " as formatted", edit: func(t *edit) error {
			o := t.volumeByLV(lv)
			if o == nil || o.deleted {
				return fmt.Errorf("volume %s/%s: %w", t.vg.Name, lv, ErrNotFound)
			}
			if o.formatted {
				return nil
			}
			c := o.lv.Clone()
			c.Tags = dropTags(c.Tags, tagUnformatted)
			return t.put(c)
		}})
	})
	return err
}

// scrubs are the volumes whose unknown extents are being zeroed.
type scrubs struct {
	mu   sync.Mutex
	jobs map[string]*scrubJob
}

type scrubJob struct {
	ended chan struct{}
	done  atomic.Uint64 // bytes
	total uint64
	err   error // valid once ended is closed
}

// scrub sees to it that nobody reads an earlier owner's bytes from the volume.
func (p *Pool) scrub(ctx context.Context, lv string) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	o := v.volumeByLV(lv)
	if o == nil || o.copyOf != "" || len(o.unknown) == 0 || o.mode == Filesystem && o.formatted {
		return nil
	}
	p.scrubs.mu.Lock()
	j := p.scrubs.jobs[lv]
	if j == nil {
		if !p.begin() {
			p.scrubs.mu.Unlock()
			return fmt.Errorf("pool %s is closed: %w", p.name, ErrUnavailable)
		}
		j = &scrubJob{ended: make(chan struct{}), total: uint64(size.Bytes(o.unknown.size()) * v.extent())}
		p.scrubs.jobs[lv] = j
		go func() {
			defer p.work.Done()
			_, j.err = run(p.ctx, p, []string{lvKey(lv)}, func(ctx context.Context) (none struct{}, err error) {
				return none, p.scrubNow(ctx, lv, j)
			})
			p.scrubs.mu.Lock()
			delete(p.scrubs.jobs, lv)
			p.scrubs.mu.Unlock()
			close(j.ended)
		}()
	}
	p.scrubs.mu.Unlock()
	select {
	case <-j.ended:
		return j.err
	case <-ctx.Done():
		return &PendingError{What: "wiping volume " + lv, Done: j.done.Load(), Total: j.total}
	}
}

// scrubNow zeroes what scrub must, and records it for a block volume. The
// volume's key is held and its device must not be there, so nobody uses it.
func (p *Pool) scrubNow(ctx context.Context, lv string, j *scrubJob) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	o := v.volumeByLV(lv)
	if o == nil || len(o.unknown) == 0 {
		return nil
	}
	if !linear(o.lv) {
		return fmt.Errorf("volume %s/%s is not wiped: %w: it is not linear, as while pvmove moves it", v.vg.Name, lv, ErrPrecondition)
	}
	if info, err := p.find(p.device(v, o.lv, "", udevVisible)); err != nil {
		return err
	} else if info != nil && info.OpenCount > 0 {
		return nil // in use already: it was scrubbed then
	}
	if o.mode == Filesystem {
		end := v.bytesOf(o.lv)
		edge := min(size.MiB, v.extent())
		physical := physical(o.lv)
		if err := p.zero(ctx, v, physical[0], edge); err != nil {
			return err
		}
		last := physicalOf(o.lv, rangeSet{{Start: lvm2.Extents(end/v.extent()) - 1, Count: 1}})[0]
		return p.zero(ctx, v, last, v.extent())
	}
	for _, r := range physicalOf(o.lv, o.unknown) {
		for r.Count > 0 {
			step := r
			step.Count = min(r.Count, max(1, v.extents(zeroStep)))
			if err := p.zero(ctx, v, step, size.Bytes(step.Count)*v.extent()); err != nil {
				return err
			}
			j.done.Add(uint64(size.Bytes(step.Count) * v.extent()))
			r.Start, r.Count = r.Start+step.Count, r.Count-step.Count
		}
	}
	zeroed := o.unknown
	return p.do(ctx, &change{what: "record that volume " + lv + " was wiped", edit: func(t *edit) error {
		was := o.lv
		o := t.volumeByLV(lv)
		if o == nil {
			return nil
		}
		if !sameExtents(v.vg, was, t.vg, o.lv) {
			return fmt.Errorf("volume %s/%s: %w: LVM2 moved or resized it while it was wiped", t.vg.Name, lv, ErrPrecondition)
		}
		c := o.lv.Clone()
		c.Tags = dropTags(c.Tags, tagUnknown)
		if rest := o.unknown.subtract(zeroed); len(rest) > 0 {
			c.Tags = setTag(c.Tags, tagUnknown, rest.String())
		}
		return t.put(c)
	}})
}
