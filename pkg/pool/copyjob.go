package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	copyBlock = 1 * size.MiB    // read and written at once
	copyRetry = 5 * time.Second // pause after a copy failed for a reason that may pass
)

// copies are the copy jobs that run, by the destination's LV name.
type copies struct {
	pool *Pool
	mu   sync.Mutex
	jobs map[string]*copyJob
}

type copyJob struct {
	cancel      context.CancelFunc
	ended       chan struct{}
	done, total atomic.Uint64 // bytes
	failure     atomic.Pointer[error]
}

// start begins to copy into the volume unless that is under way.
func (c *copies) start(lv string) *copyJob {
	c.mu.Lock()
	defer c.mu.Unlock()
	if j := c.jobs[lv]; j != nil {
		return j
	}
	ctx, cancel := context.WithCancel(c.pool.ctx)
	j := &copyJob{cancel: cancel, ended: make(chan struct{})}
	if !c.pool.begin() {
		cancel()
		close(j.ended)
		return j
	}
	c.jobs[lv] = j
	go func() {
		defer c.pool.work.Done()
		defer cancel()
		c.run(ctx, lv, j)
		c.mu.Lock()
		delete(c.jobs, lv)
		c.mu.Unlock()
		close(j.ended)
	}()
	return j
}

// cancel ends the job that copies into lv, if any, and waits for its end.
func (c *copies) cancel(lv string) {
	c.mu.Lock()
	j := c.jobs[lv]
	c.mu.Unlock()
	if j != nil {
		j.cancel()
		<-j.ended
	}
}

// run copies until the copy is complete, or can never be, or is cancelled.
func (c *copies) run(ctx context.Context, lv string, j *copyJob) {
	for {
		err := c.pool.copyInto(ctx, lv, j)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			err = fmt.Errorf("the copy was cancelled: %w", ErrNotFound)
			j.failure.Store(&err)
			return
		}
		j.failure.Store(&err)
		c.pool.log.Error(err, "Copying failed", "volume", lv)
		if errors.Is(err, ErrLost) || errors.Is(err, ErrNotFound) {
			// Nobody was ever given this volume, so nobody would delete it.
			if err := c.pool.abandon(lv); err != nil {
				c.pool.log.Error(err, "An unfinished copy stays", "volume", lv)
			}
			return
		}
		select {
		case <-time.After(copyRetry):
		case <-ctx.Done():
		}
	}
}

// abandon deletes an unfinished volume whose content can not be had any more.
func (p *Pool) abandon(lv string) error {
	return p.do(p.ctx, &change{what: "delete the unfinished volume " + lv, edit: func(t *edit) error {
		if o := t.volumeByLV(lv); o != nil && o.copyOf != "" {
			return t.deleteVolume(o)
		}
		return nil
	}, act: func(ctx context.Context, v *view) error {
		p.wiper.wake()
		return p.sweep(ctx, v)
	}})
}

// waitForCopy waits until the volume's content is complete.
func (p *Pool) waitForCopy(ctx context.Context, lv string) error {
	for {
		v, err := p.latest()
		if err != nil {
			return err
		}
		o := v.volumeByLV(lv)
		if o == nil {
			return fmt.Errorf("volume %s/%s: %w: deleted meanwhile", p.vgName, lv, ErrNotFound)
		}
		if o.copyOf == "" {
			return nil
		}
		what := fmt.Sprintf("copying %s %s to volume %s", o.source.Kind, o.source.LV, lv)
		j := p.copies.start(lv)
		select {
		case <-j.ended:
			if failure := j.failure.Load(); failure != nil {
				return fmt.Errorf("%s: %w", what, *failure)
			}
			if p.ctx.Err() != nil {
				return fmt.Errorf("pool %s is closed: %w", p.name, ErrUnavailable)
			}
		case <-ctx.Done():
			if failure := j.failure.Load(); failure != nil {
				what += fmt.Sprintf(" (it failed and is tried again: %v)", *failure)
			}
			return &PendingError{What: what, Done: j.done.Load(), Total: j.total.Load()}
		}
	}
}

// unfinished finds a volume that is being copied into, the layer that it is
// copied from, and that one's volume.
func (v *view) unfinished(lv string) (o *volume, l *layer, source *volume, err error) {
	o = v.volumeByLV(lv)
	if o == nil || o.copyOf == "" {
		return nil, nil, nil, fmt.Errorf("unfinished volume %s/%s: %w", v.vg.Name, lv, ErrNotFound)
	}
	l = v.layers[o.copyOf]
	if l == nil {
		return nil, nil, nil, fmt.Errorf("volume %s/%s: the layer %s it is copied from: %w", v.vg.Name, lv, o.copyOf, ErrNotFound)
	}
	return o, l, v.volumes[l.of], nil
}

// copyInto copies the layer named in lv's metadata into it and marks it finished.
func (p *Pool) copyInto(ctx context.Context, lv string, j *copyJob) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	_, _, source, err := v.unfinished(lv)
	if err != nil {
		return err
	}
	what, sourceLV := "copy into volume "+lv, source.lv.Name
	// The history's devices belong to whoever works on the source volume.
	locked := func(ctx context.Context, c *change) error {
		release, err := p.keys.lock(ctx, lvKey(sourceLV))
		if err != nil {
			return err
		}
		defer release()
		return p.do(p.ctx, c)
	}
	var from, to *os.File
	var length size.Bytes
	var clean bool
	err = locked(ctx, &change{what: what, act: func(ctx context.Context, v *view) (err error) {
		o, l, _, err := v.unfinished(lv)
		if err != nil {
			return err
		}
		length, clean = l.length.Bytes(), len(o.unknown) == 0
		from, to, err = p.openCopy(ctx, v, o, l)
		return err
	}})
	if err == nil {
		j.failure.Store(nil)
		j.total.Store(uint64(length))
		j.done.Store(0)
		err = copyDevice(ctx, from, to, length, clean, &j.done)
	}
	for _, f := range []*os.File{from, to} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	if err == nil {
		err = p.waitClosed(ctx, lv)
	}
	if err == nil {
		err = locked(ctx, p.finishCopy(what, lv, sourceLV, length))
	}
	if err != nil {
		return errors.Join(err, locked(p.ctx, &change{what: what, act: func(ctx context.Context, v *view) error {
			o, _, source, gone := v.unfinished(lv)
			if gone != nil {
				return nil
			}
			return errors.Join(p.down(ctx, v, o), p.chainDown(ctx, v, source))
		}}))
	}
	return nil
}

// openCopy brings up both ends of a copy and opens them, so that nobody takes
// them for unused.
func (p *Pool) openCopy(ctx context.Context, v *view, o *volume, l *layer) (from, to *os.File, err error) {
	source := v.volumes[l.of]
	path, err := p.chainUp(ctx, v, source, l)
	if err != nil {
		return nil, nil, err
	}
	if err := p.intact(v, source, l); err != nil {
		return nil, nil, err
	}
	if err := p.up(ctx, v, o); err != nil {
		return nil, nil, err
	}
	if from, err = os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0); err != nil {
		return nil, nil, err
	}
	to, err = os.OpenFile(p.dm.Node(p.device(v, o.lv, "", udevVisible).name), os.O_WRONLY|unix.O_DIRECT, 0)
	return from, to, err
}

// finishCopy is the change that makes the volume a finished one.
func (p *Pool) finishCopy(what, lv, sourceLV string, length size.Bytes) *change {
	return &change{what: what, edit: func(t *edit) error {
		o, l, source, err := t.unfinished(lv)
		if err != nil {
			return err
		}
		if err := errors.Join(p.intact(t.view, source, l), t.writable()); err != nil {
			return err
		}
		// The device was writable for the copy; it comes back as its users need it.
		if err := errors.Join(p.down(p.ctx, t.view, o), p.chainDown(p.ctx, t.view, source)); err != nil {
			return err
		}
		c := o.lv.Clone()
		c.Tags = dropTags(c.Tags, tagCopy)
		c.Flags = nil
		// What was copied is known; what lies behind it is as it was. A file
		// system's copy carries what lay below the source's.
		copied := rangeSet{{Start: 0, Count: t.extents(length)}}
		setUnknown(c, o.unknown.subtract(copied).union(l.unknown.intersect(copied)))
		if o.readOnly {
			c.Status = []string{lvm2.StatusRead, lvm2.StatusVisible}
		}
		if err := t.put(c); err != nil {
			return err
		}
		return t.prune(l)
	}, act: func(ctx context.Context, v *view) error {
		p.wiper.wake()
		if err := p.retire(ctx, v, sourceLV); err != nil {
			p.log.Error(err, "The source of a finished copy has devices left", "volume", lv)
		}
		return nil
	}}
}

// copyDevice copies length bytes past the page cache. Zeroes are not written
// where the target is known to hold zeroes.
func copyDevice(ctx context.Context, src, dst *os.File, length size.Bytes, clean bool, done *atomic.Uint64) error {
	// An anonymous mapping is page-aligned, as O_DIRECT needs it.
	buf, err := unix.Mmap(-1, 0, int(copyBlock), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	defer unix.Munmap(buf)
	zeroes := make([]byte, copyBlock)
	for off := size.Bytes(0); off < length; {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(copyBlock, length-off)]
		if _, err := io.ReadFull(io.NewSectionReader(src, int64(off), int64(len(b))), b); err != nil {
			return fmt.Errorf("reading %s at %d: %w", src.Name(), off, err)
		}
		if !clean || !bytes.Equal(b, zeroes[:len(b)]) {
			if _, err := dst.WriteAt(b, int64(off)); err != nil {
				return fmt.Errorf("writing %s at %d: %w", dst.Name(), off, err)
			}
		}
		off += size.Bytes(len(b))
		done.Store(uint64(off))
	}
	return dst.Sync()
}
