package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// lockLimit is how long LVM2's own commands wait for us while our changes
// overlap without a pause.
const lockLimit = 5 * time.Second

// committer owns the group's metadata and LVM2's lock on it. All changes that
// wait are written as one commit. The lock is held until the kernel has
// followed, but further changes do not wait for that: one volume that takes
// long to suspend does not hold up the others.
type committer struct {
	group *group
	lock  *lvm2.Lock      // nil: not held
	since time.Time       // when it was taken
	acts  map[*change]act // that run
	ended chan ended
}

// act is what a change does in the kernel.
type act struct {
	began time.Time
	lease *lease
}

// ended is an act that has ended, and the metadata before and after its change.
type ended struct {
	*change
	before, after *view
}

// An act that takes longer than lateLimit hangs in the kernel. It does not keep
// LVM2 from the group, nor the pool from being closed.
const (
	lateLimit = windowLimit + 2*time.Second
	lateLook  = time.Second
)

func (g *group) commitLoop() {
	defer close(g.stopped)
	c := committer{group: g, acts: map[*change]act{}, ended: make(chan ended)}
	look := time.NewTicker(lateLook)
	defer look.Stop()
	for {
		changes, lonely := g.changes, g.lonely
		if c.lock != nil {
			lonely = nil
		}
		if c.lock != nil && time.Since(c.since) > lockLimit {
			changes = nil // until the lock was free for a moment
		}
		select {
		case first := <-g.urgent:
			c.batch(first, g.urgent)
		case first := <-changes:
			c.batch(first, changes)
		case w := <-lonely:
			w.done <- guard(klog.FromContext(w.ctx), func() error { return w.alone(w.ctx) })
		case w := <-c.ended:
			c.end(w)
		case <-look.C:
			c.leaveLate()
		case <-g.ctx.Done():
			for limit := time.After(closingWait); len(c.acts) > 0; {
				select {
				case w := <-c.ended:
					delete(c.acts, w.change)
				case <-limit:
					for _, a := range c.acts {
						a.lease.leave()
					}
					clear(c.acts)
				}
			}
			c.release()
			return
		}
		if len(c.acts) == 0 {
			c.release()
		}
	}
}

// end takes note that an act has ended.
func (c *committer) end(w ended) {
	if _, waited := c.acts[w.change]; !waited {
		// The lock was given back meanwhile: LVM2 may have changed what it worked on.
		for id := range c.group.current.Load().volumes {
			c.group.facts.unsettled.put(id, true)
		}
	}
	delete(c.acts, w.change)
	c.group.settled(w.before, w.after)
}

// leaveLate stops waiting for acts that hang.
func (c *committer) leaveLate() {
	for w, a := range c.acts {
		if time.Since(a.began) > lateLimit {
			c.group.log.Info("The kernel does not answer: the volume group's lock is given back before the devices have followed", "volumeGroup", c.group.vgName, "change", w.what)
			a.lease.leave()
			delete(c.acts, w)
		}
	}
}

func (c *committer) release() {
	if c.lock == nil {
		return
	}
	if err := c.lock.Unlock(); err != nil {
		c.group.log.Error(err, "Releasing the volume group's lock", "volumeGroup", c.group.vgName)
	}
	c.lock = nil
}

// batch commits first and every change that waits in queue, and begins their acts.
func (c *committer) batch(first *change, queue <-chan *change) {
	if c.lock == nil {
		lock, err := c.group.host.LockVG(c.group.ctx, c.group.vgName, lvm2.Exclusive)
		if err != nil {
			first.done <- unavailable(err)
			return
		}
		c.lock, c.since = lock, time.Now()
	}
	waiting := append([]*change{first}, drain(queue)...)
	var before *view
	err := guard(c.group.log, func() (err error) { before, err = c.group.read(); return err })
	if err != nil {
		for _, w := range waiting {
			w.done <- err
		}
		return
	}
	v, todo := c.group.edit(before, waiting)
	noAct := false
	for _, w := range todo {
		if w.act == nil {
			w.done <- nil
			noAct = true
			continue
		}
		running := act{time.Now(), &lease{group: c.group}}
		c.acts[w] = running
		go func() {
			ctx := klog.NewContext(c.group.ctx, klog.FromContext(w.ctx))
			w.done <- guard(klog.FromContext(ctx), func() error { return w.act(ctx, v.leased(running.lease)) })
			select {
			case c.ended <- ended{w, before, v}:
			case <-c.group.stopped:
			}
		}()
	}
	if noAct && v != before {
		c.group.settled(before, v)
	}
}

func drain(queue <-chan *change) []*change {
	var all []*change
	for {
		select {
		case c := <-queue:
			all = append(all, c)
		default:
			return all
		}
	}
}

// read returns the view of the metadata as it is on the disk.
func (g *group) read() (*view, error) {
	vg, err := g.store.Read(g.ctx)
	if err != nil {
		err = unavailable(err)
		g.broken.Store(&err)
		return nil, err
	}
	v := g.current.Load()
	if v == nil || v.vg != vg {
		former := v
		v = newView(vg, v)
		g.current.Store(v)
		if former != nil {
			g.disksMoved(former, v)
		}
		g.changed.Store(true)
		g.foreign.Add(1)
	}
	g.broken.Store(nil)
	g.textMost.Store(uint64(g.store.MaxText()))
	g.maps = nil // they may have changed since
	return v, nil
}

// edit applies the changes' edits and commits them. It answers those that
// failed and returns the rest.
func (g *group) edit(v *view, waiting []*change) (*view, []*change) {
	b := g.apply(v, waiting)
	if len(b.edited) == 0 {
		return v, b.todo
	}
	err := g.write(b)
	switch {
	case err == nil:
		for _, c := range b.edited {
			c.committed = true
		}
		return b.next, append(b.todo, b.edited...)
	case len(b.edited) > 1 && !errors.Is(err, lvm2.ErrUncertain):
		// Nothing was written. Each gets its own answer, first what makes room in the metadata.
		g.byGrowth(v, b.edited)
		done := b.todo
		for _, c := range b.edited {
			next, one := g.edit(v, []*change{c})
			v, done = next, append(done, one...)
		}
		return v, done
	}
	for _, c := range b.edited {
		c.done <- unavailable(err)
	}
	if errors.Is(err, lvm2.ErrUncertain) {
		// It may have reached the disk all the same: then the kernel must follow.
		for id := range v.volumes {
			g.facts.unsettled.put(id, true)
		}
	}
	return v, b.todo
}

// batch is changes and what their edits have made of a view.
type batch struct {
	next    *view
	todo    []*change // nothing is to be written for these
	edited  []*change
	written []*lvm2.PV
}

// apply makes the changes' edits in memory. It answers those that failed.
func (g *group) apply(v *view, waiting []*change) batch {
	b := batch{next: v}
	for _, c := range waiting {
		if c.ctx.Err() != nil {
			c.done <- context.Cause(c.ctx)
			continue
		}
		if c.edit == nil {
			b.todo = append(b.todo, c)
			continue
		}
		e, next, err := g.try(b.next, c)
		switch {
		case err != nil:
			c.done <- err
		case !e.changed:
			b.todo = append(b.todo, c)
		default:
			b.next, b.edited, b.written = next, append(b.edited, c), append(b.written, e.written...)
		}
	}
	return b
}

// try makes a change's edit on a copy of v and returns what becomes of it.
func (g *group) try(v *view, c *change) (e *edit, next *view, err error) {
	err = guard(klog.FromContext(c.ctx), func() error {
		own := *v
		own.vg = v.vg.Clone()
		e = &edit{view: &own, kernel: g.mapsOnce}
		err := c.edit(e)
		if e.asked {
			g.facts.setInUse(e.mapped)
		}
		if err != nil || !e.changed {
			return err
		}
		next = newView(e.vg, v)
		next.clean = v.clean.union(e.wiped).intersect(next.free)
		return nil
	})
	return e, next, err
}

// byGrowth sorts changes by what each adds to the metadata. What deletes comes first.
func (g *group) byGrowth(v *view, changes []*change) {
	grown := make(map[*change]int, len(changes))
	for _, c := range changes {
		if _, next, err := g.try(v, c); err == nil && next != nil {
			grown[c] = int(next.vg.TextSize())
		}
	}
	slices.SortStableFunc(changes, func(a, b *change) int { return cmp.Compare(grown[a], grown[b]) })
}

// write commits a batch.
func (g *group) write(b batch) error {
	writeClean(b.next.vg, b.next.clean)
	if m := g.metadata(b.next); m.Size > 0 && m.Used+m.Reserved/2 > m.Size {
		writeClean(b.next.vg, nil) // it is worth less than what must be written down
	}
	start := time.Now()
	err := guard(g.log, func() error { return g.store.Commit(g.ctx, b.next.vg, b.written...) })
	if err != nil {
		return err
	}
	g.log.V(4).Info("Committed metadata", "volumeGroup", g.vgName, "seqno", b.next.vg.Seqno, "changes", len(b.edited), "took", time.Since(start))
	g.current.Store(b.next)
	return nil
}

// latest returns the view of the last commit or refresh.
func (g *group) latest() (*view, error) {
	if err := g.broken.Load(); err != nil {
		return nil, *err
	}
	return g.current.Load(), nil
}

// refresh reads the metadata again, so that what LVM2's own commands change is seen. It
// waits no longer than ctx lives, also while LVM2 has the group's lock.
func (g *group) refresh(ctx context.Context) error {
	return g.do(ctx, &change{what: "read volume group " + g.vgName, loose: true})
}

// unavailable says which of this package's errors an error of the LVM2 layer is.
func unavailable(err error) error {
	if errors.Is(err, lvm2.ErrMetadataFull) {
		return fmt.Errorf("%w: %w; %s", ErrNoSpace, err, enlarge)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
