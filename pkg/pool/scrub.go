package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

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
	if o == nil || len(o.unknown) == 0 || o.mode == Filesystem && o.formatted {
		return nil
	}
	// Zeroing what a fork reads through would fill its store, and wait for the
	// hydration that waits for the volume's key.
	for o.mode == Block && v.readsUnknown(o) {
		select {
		case <-time.After(busyPause):
		case <-ctx.Done():
			return &PendingError{What: "hydrating volume " + lv + ", parts of which must be wiped then"}
		}
		if v, err = p.latest(); err != nil {
			return err
		}
		if o = v.volumeByLV(lv); o == nil || len(o.unknown) == 0 {
			return nil
		}
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

// readsUnknown tells whether a fork reads parts of its snapshot that may hold an
// earlier owner's bytes.
func (v *view) readsUnknown(o *volume) bool {
	l := v.layers[o.copyOf]
	return l != nil && len(o.unknown.intersect(rangeSet{{Start: 0, Count: v.extents(l.length.Bytes())}})) > 0
}

// scrubNow zeroes what scrub must, and records it for a block volume. The
// volume's key is held. The device is open meanwhile, so LVM2 leaves it alone.
func (p *Pool) scrubNow(ctx context.Context, lv string, j *scrubJob) (err error) {
	var was *view
	var o *volume
	var f *os.File
	err = p.do(ctx, &change{what: "wipe volume " + lv, act: func(ctx context.Context, v *view) (err error) {
		was, o = v, v.volumeByLV(lv)
		if o == nil || len(o.unknown) == 0 {
			return nil
		}
		if why := o.theirs(); why != "" {
			return fmt.Errorf("volume %s/%s: %w: %s", v.vg.Name, lv, ErrPrecondition, why)
		}
		if info, err := p.find(p.device(v, o.lv, "", udevVisible)); err != nil || info != nil && info.OpenCount > 0 {
			return err // in use already: it was scrubbed then
		}
		table, err := p.blocks(ctx, v, o)
		if err != nil {
			return err
		}
		// Below a snapshot, so that zeroing does not copy the old bytes into its store.
		d := p.device(v, o.lv, "", udevVisible)
		if o.live() != nil {
			d = p.device(v, o.lv, layerReal, udevReal)
		}
		f, err = p.openDevice(ctx, d, table)
		return err
	}})
	if err != nil || f == nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	length := was.bytesOf(o.lv)
	progress := func(n size.Bytes) { j.done.Add(uint64(n)) }
	if o.mode == Filesystem {
		edge := min(size.MiB, length)
		return errors.Join(zeroDevice(ctx, f, 0, edge, progress), zeroDevice(ctx, f, length-edge, edge, progress))
	}
	for _, r := range o.unknown {
		if err := zeroDevice(ctx, f, size.Bytes(r.Start)*was.extent(), size.Bytes(r.Count)*was.extent(), progress); err != nil {
			return err
		}
	}
	return p.do(ctx, &change{what: "record that volume " + lv + " was wiped", edit: func(t *edit) error {
		now := t.volumeByLV(lv)
		if now == nil {
			return nil
		}
		if !sameExtents(was.vg, o.lv, t.vg, now.lv) {
			return fmt.Errorf("volume %s/%s: %w: LVM2 moved or resized it while it was wiped", t.vg.Name, lv, ErrPrecondition)
		}
		c := now.lv.Clone()
		setUnknown(c, now.unknown.subtract(o.unknown))
		return t.put(c)
	}})
}
