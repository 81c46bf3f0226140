package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// change is one step of an operation. Both parts run under LVM2's lock on the
// group: edit changes the metadata, act brings device-mapper in line with it
// once it is on the disk.
type change struct {
	what string                                   // for messages: "create volume pvc-1"
	edit func(t *edit) error                      // may be nil: nothing changes on the disk
	act  func(ctx context.Context, v *view) error // may be nil: nothing changes in the kernel
	done chan error
	ctx  context.Context
}

// edit is what a change may alter. What a failing edit did is dropped.
type edit struct {
	*view            // the metadata as this batch found and changed it so far; vg is the edit's own copy
	wiped   rangeSet // extents freed by this edit that hold zeroes
	changed bool
}

// put adds or replaces a logical volume.
func (t *edit) put(lv *lvm2.LV) error {
	t.changed = true
	if t.vg.LVByID(lv.ID) != nil {
		return inTheWay(t.vg.Replace(lv))
	}
	return t.vg.Add(lv)
}

// remove takes a logical volume out of the group.
func (t *edit) remove(id lvm2.ID) error {
	t.changed = true
	return inTheWay(t.vg.Remove(id))
}

// inTheWay marks the errors that last as long as something of LVM2's does: a
// running pvmove or merge, or a conversion to another segment type.
func inTheWay(err error) error {
	if errors.Is(err, lvm2.ErrLocked) || errors.Is(err, lvm2.ErrForeignSegment) {
		return fmt.Errorf("%w: %w", ErrPrecondition, err)
	}
	return err
}

// do hands c to the committer and waits until it is on the disk and in the
// kernel. If ctx ends first, c still runs if it has begun.
func (p *Pool) do(ctx context.Context, c *change) error {
	c.done, c.ctx = make(chan error, 1), ctx
	select {
	case p.changes <- c:
	case <-ctx.Done():
		return fmt.Errorf("%s: waiting for pool %s: %w", c.what, p.name, context.Cause(ctx))
	case <-p.ctx.Done():
		return fmt.Errorf("%s: pool %s is closed: %w", c.what, p.name, ErrUnavailable)
	}
	select {
	case err := <-c.done:
		if err != nil {
			return fmt.Errorf("%s: %w", c.what, err)
		}
		return nil
	case <-p.stopped:
		return fmt.Errorf("%s: pool %s was closed: %w", c.what, p.name, ErrUnavailable)
	}
}

// commitLoop owns the group's metadata. All changes that wait are written as
// one commit.
func (p *Pool) commitLoop() {
	defer close(p.stopped)
	for {
		select {
		case c := <-p.changes:
			p.batch(c)
		case <-p.ctx.Done():
			return
		}
	}
}

// batch runs first and every change that came meanwhile.
func (p *Pool) batch(first *change) {
	lock, err := p.host.LockVG(p.ctx, p.vgName, lvm2.Exclusive)
	if err != nil {
		first.done <- unavailable(err)
		return
	}
	waiting := append([]*change{first}, p.drain()...)
	v, err := p.read()
	if err != nil {
		for _, c := range waiting {
			c.done <- err
		}
		p.unlock(lock)
		return
	}
	v, todo := p.edit(v, waiting)
	var acts sync.WaitGroup
	for _, c := range todo {
		acts.Add(1)
		go func() {
			defer acts.Done()
			var err error
			if c.act != nil {
				err = c.act(klog.NewContext(p.ctx, klog.FromContext(c.ctx)), v)
			}
			c.done <- err
		}()
	}
	acts.Wait()
	p.unlock(lock)
}

func (p *Pool) unlock(l *lvm2.Lock) {
	if err := l.Unlock(); err != nil {
		p.log.Error(err, "Releasing the volume group's lock", "volumeGroup", p.vgName)
	}
}

func (p *Pool) drain() []*change {
	var all []*change
	for {
		select {
		case c := <-p.changes:
			all = append(all, c)
		default:
			return all
		}
	}
}

// read returns the view of the metadata as it is on the disk.
func (p *Pool) read() (*view, error) {
	vg, err := p.store.Read(p.ctx)
	if err != nil {
		err = unavailable(err)
		p.broken.Store(&err)
		return nil, err
	}
	v := p.current.Load()
	if v == nil || v.vg != vg {
		v = newView(vg, v)
		p.current.Store(v)
	}
	p.broken.Store(nil)
	return v, nil
}

// edit applies the changes' edits and commits them. It answers those that
// failed and returns the rest.
func (p *Pool) edit(v *view, waiting []*change) (*view, []*change) {
	var todo, edited []*change
	next := v
	for _, c := range waiting {
		if err := c.ctx.Err(); err != nil {
			c.done <- err
			continue
		}
		if c.edit == nil {
			todo = append(todo, c)
			continue
		}
		own := *next
		own.vg = next.vg.Clone()
		e := &edit{view: &own}
		if err := c.edit(e); err != nil {
			c.done <- err
			continue
		}
		if e.changed {
			clean := next.clean.union(e.wiped)
			next = newView(e.vg, next)
			next.clean = clean.intersect(newRangeSet(e.vg.Free()...))
			edited = append(edited, c)
		} else {
			todo = append(todo, c)
		}
	}
	if len(edited) == 0 {
		return v, todo
	}
	writeClean(next.vg, next.clean)
	start := time.Now()
	if err := p.store.Commit(p.ctx, next.vg); err != nil {
		for _, c := range edited {
			c.done <- unavailable(err)
		}
		return v, todo
	}
	p.log.V(4).Info("Committed metadata", "volumeGroup", p.vgName, "seqno", next.vg.Seqno, "changes", len(edited), "took", time.Since(start))
	p.current.Store(next)
	return next, append(todo, edited...)
}

// latest returns the view of the last commit or refresh.
func (p *Pool) latest() (*view, error) {
	if err := p.broken.Load(); err != nil {
		return nil, *err
	}
	return p.current.Load(), nil
}

// refresh reads the metadata again, so that what LVM2's own commands change is seen.
func (p *Pool) refresh(ctx context.Context) error {
	return p.do(ctx, &change{what: "read volume group " + p.vgName})
}

// unavailable says which of this package's errors an error of the LVM2 layer is.
func unavailable(err error) error {
	for _, full := range []error{lvm2.ErrMetadataFull} {
		if errors.Is(err, full) {
			return fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// keyed serialises operations on one thing: a volume and its history, or a name.
type keyed struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// lock waits for key until ctx ends. The returned function releases it.
func (k *keyed) lock(ctx context.Context, key string) (release func(), err error) {
	for {
		k.mu.Lock()
		busy, taken := k.held[key]
		if !taken {
			free := make(chan struct{})
			k.held[key] = free
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, key)
				k.mu.Unlock()
				close(free)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, fmt.Errorf("another operation on %s is running: %w", key, context.Cause(ctx))
		}
	}
}

// run executes f while holding keys, which are taken in the given order: names
// before logical volumes. The caller waits as long as ctx lives. Once f has
// begun it goes on without the caller, because what it did is on the disk.
func run[T any](ctx context.Context, p *Pool, keys []string, f func(context.Context) (T, error)) (T, error) {
	var none T
	var releases []func()
	release := func() {
		for _, r := range slices.Backward(releases) {
			r()
		}
	}
	for _, k := range keys {
		r, err := p.keys.lock(ctx, k)
		if err != nil {
			release()
			return none, err
		}
		releases = append(releases, r)
	}
	if !p.begin() {
		release()
		return none, fmt.Errorf("pool %s is closed: %w", p.name, ErrUnavailable)
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	own := klog.NewContext(p.ctx, klog.FromContext(ctx))
	go func() {
		defer p.work.Done()
		v, err := f(own)
		release()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, fmt.Errorf("the operation on %v goes on in the background: %w", keys, context.Cause(ctx))
	}
}

// Keys under which operations exclude each other.
func nameKey(csi string) string { return fmt.Sprintf("name %q", csi) }
func lvKey(lv string) string    { return "logical volume " + lv }
