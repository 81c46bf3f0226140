package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// change is one step of an operation. Both parts run under LVM2's lock on the
// group: edit changes the metadata, act brings device-mapper in line with it
// once it is on the disk.
type change struct {
	what  string                                   // for messages: "create volume pvc-1"
	edit  func(t *edit) error                      // may be nil: nothing changes on the disk
	act   func(ctx context.Context, v *view) error // may be nil: nothing changes in the kernel
	alone func(ctx context.Context) error          // instead of both: works on the store itself, under locks that it takes, and nothing else does meanwhile
	fast  bool                                     // a store fills: not behind slow acts of other volumes
	loose bool                                     // its caller leaves when ctx ends, also where it may still be carried out
	done  chan error
	ctx   context.Context

	committed bool // its edit is on the disk; the committer's until it answers
}

// edit is what a change may alter. What a failing edit did is dropped.
type edit struct {
	*view              // the metadata as this batch found and changed it so far; vg is the edit's own copy
	wiped   rangeSet   // extents freed by this edit that hold zeroes
	written []*lvm2.PV // to which this edit wrote what must be on the disk before the metadata
	changed bool
	kernel  func(v *view, anew bool) ([]mapping, error) // what its devices map; nil: nothing is known, as in tests without one
	asked   bool                                        // it was, and free is without that
	mapped  []mapping                                   // what is free by the metadata, and not by the kernel
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

// do carries out c: it is on the disk and in the kernel when do returns nil. If
// ctx ends first, c still runs if it has begun; do waits for it, unless c is loose.
func (g *group) do(ctx context.Context, c *change) error {
	err := g.submit(ctx, c)
	var loss *unrecordedLoss
	if errors.As(err, &loss) { // the edit goes by what is on record
		failed := g.record(ctx, loss)
		if err = cmp.Or(failed, err); failed == nil && !c.committed {
			again := *c
			err = g.submit(ctx, &again)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c.what, err)
	}
	return nil
}

// submit hands c to the committer and waits for its end.
func (g *group) submit(ctx context.Context, c *change) error {
	c.done, c.ctx = make(chan error, 1), ctx
	queue := g.changes
	switch {
	case c.alone != nil:
		queue = g.lonely
	case c.fast:
		queue = g.urgent
	}
	select {
	case queue <- c:
	case <-ctx.Done():
		return fmt.Errorf("waiting for pool %s: %w", g.name, context.Cause(ctx))
	case <-g.ctx.Done():
		return fmt.Errorf("pool %s is closed: %w", g.name, ErrUnavailable)
	}
	var left <-chan struct{}
	if c.loose {
		left = ctx.Done()
	}
	select {
	case err := <-c.done:
		return err
	case <-left: // the committer may wait for LVM2
		return fmt.Errorf("waiting for volume group %s: %w", g.vgName, context.Cause(ctx))
	case <-g.stopped:
		return fmt.Errorf("pool %s was closed: %w", g.name, ErrUnavailable)
	}
}
