package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
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

// createFrom makes a volume with the content of a snapshot or another volume.
// The volume is in the metadata at once, marked unfinished, and names the layer
// that its content is copied from; a clone cuts an internal layer of its source.
func (p *Pool) createFrom(ctx context.Context, spec VolumeSpec) (string, error) {
	var name string
	var made bool
	var cutOf lvm2.ID
	err := p.do(ctx, &change{what: fmt.Sprintf("create volume %q from %s %s", spec.Name, spec.Source.Kind, spec.Source.LV), edit: func(t *edit) error {
		if o, err := t.existing(spec); err != nil || o != nil {
			if o != nil {
				name = o.lv.Name
			}
			return err
		}
		from, o, err := t.contentOf(spec)
		if err != nil {
			return err
		}
		least := t.bytesOf(o.lv)
		if from != nil {
			least = from.length.Bytes()
		}
		n, err := t.extentsFor(spec.Size, spec.Limit, least)
		if err != nil {
			return err
		}
		lv, err := p.newVolume(t, spec, n)
		if err != nil {
			return err
		}
		if err := t.put(lv); err != nil {
			return err
		}
		layerID := lvm2.ID("")
		if from != nil {
			layerID = from.lv.ID
		} else {
			cut, err := p.cut(t, o, "")
			if err != nil {
				return err
			}
			layerID, cutOf = cut.ID, o.lv.ID
		}
		c := lv.Clone()
		c.Tags = setTag(c.Tags, tagCopy, string(layerID))
		c.Flags = slices.Clone(handsOff)
		name, made = lv.Name, true
		return t.put(c)
	}, act: func(ctx context.Context, v *view) error {
		if cutOf == "" {
			return nil
		}
		return p.settle(ctx, v, v.volumes[cutOf])
	}})
	if err != nil {
		return "", err
	}
	if made {
		p.copies.start(name)
	}
	return name, nil
}

// sourceKeys are the keys of the volume whose history spec's source is in.
func (p *Pool) sourceKeys(spec VolumeSpec) ([]string, error) {
	switch spec.Source.Kind {
	case FromNothing:
		return nil, nil
	case FromVolume:
		return []string{lvKey(spec.Source.LV)}, nil
	}
	v, err := p.latest()
	if err != nil {
		return nil, err
	}
	if l := v.snapshotByLV(spec.Source.LV); l != nil {
		return []string{lvKey(v.volumes[l.of].lv.Name)}, nil
	}
	return nil, nil // a repeated call may find the volume though its source is gone
}

// contentOf finds what spec's source is: a layer, or a volume of which a layer
// must be cut.
func (v *view) contentOf(spec VolumeSpec) (*layer, *volume, error) {
	var l *layer
	var o *volume
	var err error
	unknown := false
	if spec.Source.Kind == FromSnapshot {
		if l = v.snapshotByLV(spec.Source.LV); l == nil {
			return nil, nil, fmt.Errorf("snapshot %s/%s: %w", v.vg.Name, spec.Source.LV, ErrNotFound)
		}
		o = v.volumes[l.of]
		if v.describeSnapshot(l).Lost {
			return nil, nil, fmt.Errorf("snapshot %s/%s: %w", v.vg.Name, l.lv.Name, ErrLost)
		}
		unknown = l.unknown
	} else {
		if o, err = v.source(spec.Source.LV); err != nil {
			return nil, nil, err
		}
		unknown = len(o.unknown) > 0
	}
	if spec.Mode == Filesystem && o.mode == Filesystem && spec.FSType != o.fs {
		return nil, nil, fmt.Errorf("%w: file system %s asked for, the source's is %s", ErrInvalid, spec.FSType, o.fs)
	}
	if spec.Mode == Block && o.mode == Filesystem && unknown {
		// Below the file system lie blocks that it never wrote: as a raw
		// device they would show what an earlier owner of the extents left.
		return nil, nil, fmt.Errorf("volume %s/%s: %w: it was made on extents that were never wiped, so it cannot become a raw block volume",
			v.vg.Name, o.lv.Name, ErrPrecondition)
	}
	return l, o, nil
}

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
			err = fmt.Errorf("cancelled: %w", ErrNotFound)
			j.failure.Store(&err)
			return
		}
		c.pool.log.Error(err, "Copying failed", "volume", lv)
		j.failure.Store(&err)
		if errors.Is(err, ErrLost) || errors.Is(err, ErrNotFound) {
			return
		}
		select {
		case <-time.After(copyRetry):
		case <-ctx.Done():
			return
		}
	}
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
		j := p.copies.start(lv)
		pending := &PendingError{
			What: fmt.Sprintf("copying %s %s to volume %s", o.source.Kind, o.source.LV, lv),
			Done: j.done.Load(), Total: j.total.Load(),
		}
		if failure := j.failure.Load(); failure != nil {
			return fmt.Errorf("%s: %w", pending.What, *failure)
		}
		select {
		case <-j.ended:
			if failure := j.failure.Load(); failure != nil {
				return fmt.Errorf("%s: %w", pending.What, *failure)
			}
			if p.ctx.Err() != nil {
				return fmt.Errorf("pool %s is closed: %w", p.name, ErrUnavailable)
			}
		case <-ctx.Done():
			pending.Done, pending.Total = j.done.Load(), j.total.Load()
			return pending
		}
	}
}

// copyInto copies the layer named in lv's metadata into it and marks it finished.
func (p *Pool) copyInto(ctx context.Context, lv string, j *copyJob) error {
	var from, to *os.File
	var length size.Bytes
	var clean bool
	what := "copy into volume " + lv
	find := func(v *view) (*volume, *layer, *volume, error) {
		o := v.volumeByLV(lv)
		if o == nil || o.copyOf == "" {
			return nil, nil, nil, fmt.Errorf("volume %s/%s: %w", v.vg.Name, lv, ErrNotFound)
		}
		l := v.layers[o.copyOf]
		if l == nil {
			return nil, nil, nil, fmt.Errorf("volume %s/%s: the layer %s it is copied from: %w", v.vg.Name, lv, o.copyOf, ErrNotFound)
		}
		return o, l, v.volumes[l.of], nil
	}
	v, err := p.latest()
	if err != nil {
		return err
	}
	_, _, source, err := find(v)
	if err != nil {
		return err
	}
	// The history's devices belong to whoever works on the source volume.
	locked := func(c *change) error {
		_, err := run(p.ctx, p, []string{lvKey(source.lv.Name)}, func(ctx context.Context) (none struct{}, err error) {
			return none, p.do(ctx, c)
		})
		return err
	}
	err = locked(&change{what: what, act: func(ctx context.Context, v *view) error {
		o, l, source, err := find(v)
		if err != nil {
			return err
		}
		path, err := p.chainUp(ctx, v, source, l)
		if err != nil {
			return err
		}
		if err := p.intact(v, source, l); err != nil {
			return err
		}
		length, clean = l.length.Bytes(), len(o.unknown) == 0
		if err := p.up(ctx, v, o); err != nil {
			return err
		}
		// Open from here on, so that nobody takes the chain for unused.
		if from, err = os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0); err != nil {
			return err
		}
		to, err = os.OpenFile(p.dm.Node(p.device(v, o.lv, "", udevVisible).name), os.O_WRONLY|unix.O_DIRECT, 0)
		return err
	}})
	if err == nil {
		j.total.Store(uint64(length))
		j.done.Store(0)
		err = copyDevice(ctx, from, to, length, clean, &j.done)
	}
	from.Close()
	to.Close()
	if err != nil {
		return errors.Join(err, locked(&change{what: what, act: func(ctx context.Context, v *view) error {
			o, _, source, err := find(v)
			if err != nil {
				return nil
			}
			return errors.Join(p.down(ctx, v, o), p.chainDown(ctx, v, source))
		}}))
	}
	if err := p.waitClosed(ctx, lv); err != nil {
		return err
	}
	var before *volume
	return locked(&change{what: what, edit: func(t *edit) error {
		o, l, source, err := find(t.view)
		if err != nil {
			return err
		}
		if err := p.intact(t.view, source, l); err != nil {
			return err
		}
		// The device was writable for the copy; it comes back as its users need it.
		if err := errors.Join(p.down(p.ctx, t.view, o), p.chainDown(p.ctx, t.view, source)); err != nil {
			return err
		}
		before = source
		c := o.lv.Clone()
		c.Tags = dropTags(c.Tags, tagCopy, tagUnknown)
		c.Flags = nil
		// What was copied is known; what lies behind it is as it was. A file
		// system's copy carries what lay below the source's.
		copied := rangeSet{{Start: 0, Count: t.extents(length)}}
		unknown := o.unknown.subtract(copied)
		if l.unknown {
			unknown = unknown.union(copied)
		}
		if len(unknown) > 0 {
			c.Tags = setTag(c.Tags, tagUnknown, unknown.String())
		}
		if o.readOnly {
			c.Status = []string{lvm2.StatusRead, lvm2.StatusVisible}
		}
		if err := t.put(c); err != nil {
			return err
		}
		return t.prune(l)
	}, act: func(ctx context.Context, v *view) error {
		p.wiper.wake()
		return p.retire(ctx, v, before)
	}})
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
		if !clean || string(b) != string(zeroes[:len(b)]) {
			if _, err := dst.WriteAt(b, int64(off)); err != nil {
				return fmt.Errorf("writing %s at %d: %w", dst.Name(), off, err)
			}
		}
		off += size.Bytes(len(b))
		done.Store(uint64(off))
	}
	return dst.Sync()
}
