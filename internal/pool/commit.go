package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// lockLimit bounds how long overlapping changes may keep LVM2's own commands
// waiting for the lock.
const lockLimit = 5 * time.Second

// committer owns the group's metadata and LVM2's lock on it. It writes all waiting
// changes as one commit. It holds the lock until every act has brought the kernel
// in line. Later changes do not wait for these acts, so a volume that is slow to
// suspend does not delay the others.
type committer struct {
	group *group
	lock  *lvm2.Lock      // nil if not held
	since time.Time       // when the lock was taken
	acts  map[*change]act // running acts
	ended chan ended
}

// act is the running kernel part of a change.
type act struct {
	began time.Time
	lease *lease
}

// ended reports that the act of a change has ended, with the metadata before and after
// the change.
type ended struct {
	*change
	before, after *view
}

// An act that takes longer than lateLimit hangs in the kernel. The committer then
// releases LVM2's lock, and the pool can be closed.
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
			changes = nil // let LVM2's commands have the lock first
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

// end records that an act has ended.
func (c *committer) end(w ended) {
	if _, waited := c.acts[w.change]; !waited {
		// The lock was released before the act ended, so LVM2 may have changed the
		// volumes that the act worked on.
		for id := range c.group.current.Load().Volumes.All() {
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
			c.group.log.Info("The kernel does not answer; released the volume group's lock before the devices were updated", "volumeGroup", c.group.vgName, "change", w.what)
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
		c.group.log.Error(err, "Failed to release the volume group's lock", "volumeGroup", c.group.vgName)
	}
	c.lock = nil
}

// batch commits first and every change waiting in queue, and starts their acts.
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
		if w.act == nil || w.noAct {
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

// read reads the metadata from the disk and returns its view.
func (g *group) read() (*view, error) {
	vg, err := g.vgStore.Read(g.ctx)
	if err != nil {
		err = unavailable(err)
		g.broken.Store(&err)
		return nil, err
	}
	v := g.current.Load()
	if v == nil || v.VG != vg {
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
	g.textMost.Store(uint64(g.vgStore.MaxText()))
	g.maps = nil // the devices may have changed
	return v, nil
}

// edit applies the edits of the waiting changes and commits them. It answers the
// changes that failed, and returns the new view and the other changes.
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
		// Nothing was written. Commit each change alone so that each gets its own
		// answer. Changes that make room in the metadata go first.
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
		// The metadata may still have reached the disk; then the kernel must follow it.
		for id := range v.Volumes.All() {
			g.facts.unsettled.put(id, true)
		}
	}
	return v, b.todo
}

// batch is a set of changes, and the view after their edits.
type batch struct {
	next    *view
	todo    []*change // changes without anything to write
	edited  []*change
	written []*lvm2.PV
}

// apply runs the edits of the waiting changes in memory. It answers the changes
// whose edit failed.
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
		case !e.Changed:
			b.todo = append(b.todo, c)
		default:
			b.next, b.edited, b.written = next, append(b.edited, c), append(b.written, e.written...)
		}
	}
	return b
}

// try runs the edit of c on a copy of v, and returns the edit and the resulting
// view. next is nil if the edit changed nothing.
func (g *group) try(v *view, c *change) (e *edit, next *view, err error) {
	err = guard(klog.FromContext(c.ctx), func() error {
		own := *v.View
		own.VG = v.VG.Clone()
		e = &edit{Edit: &catalog.Edit{View: &own, Kernel: func(v *catalog.View, anew bool) ([]catalog.Mapping, error) {
			return g.mapsOnce(&view{View: v}, anew)
		}}}
		err := c.edit(e)
		c.noAct = e.noAct
		if e.Asked {
			g.facts.setInUse(e.Mapped)
		}
		if err != nil || !e.Changed {
			return err
		}
		next = newView(e.VG, v)
		next.Clean = v.Clean.Union(e.Wiped).Intersect(next.Free)
		return nil
	})
	return e, next, err
}

// byGrowth sorts changes by the size of the metadata after each, so that changes
// that delete come first.
func (g *group) byGrowth(v *view, changes []*change) {
	grown := make(map[*change]int, len(changes))
	for _, c := range changes {
		if _, next, err := g.try(v, c); err == nil && next != nil {
			grown[c] = int(next.VG.TextSize())
		}
	}
	slices.SortStableFunc(changes, func(a, b *change) int { return cmp.Compare(grown[a], grown[b]) })
}

// write commits a batch.
func (g *group) write(b batch) error {
	catalog.WriteClean(b.next.VG, b.next.Clean)
	if m := g.metadata(b.next); m.Size > 0 && m.Used+m.Reserved/2 > m.Size {
		catalog.WriteClean(b.next.VG, nil) // the list of clean extents may be lost; the rest may not
	}
	start := time.Now()
	err := guard(g.log, func() error { return g.vgStore.Commit(g.ctx, b.next.VG, b.written...) })
	if err != nil {
		return err
	}
	g.log.V(4).Info("Committed metadata", "volumeGroup", g.vgName, "seqno", b.next.VG.Seqno, "changes", len(b.edited), "took", time.Since(start))
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

// refresh reads the metadata again, so that the pool sees changes by LVM2's own
// commands. It returns when ctx ends, even while LVM2 holds the group's lock.
func (g *group) refresh(ctx context.Context) error {
	return g.do(ctx, &change{what: "read volume group " + g.vgName, loose: true})
}

// unavailable converts an error of the LVM2 layer to an error of this package.
func unavailable(err error) error {
	if errors.Is(err, lvm2.ErrMetadataFull) {
		return fmt.Errorf("%w: %w; %s", ErrNoSpace, err, enlarge)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
