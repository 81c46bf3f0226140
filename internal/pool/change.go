package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
)

// change is one step of an operation. Its edit changes the metadata; after the
// metadata is on the disk, its act brings device-mapper in line. Both run under
// LVM2's lock on the group.
type change struct {
	what  string                                   // for messages: "create volume pvc-1"
	edit  func(t *edit) error                      // nil if nothing changes on the disk
	act   func(ctx context.Context, v *view) error // nil if nothing changes in the kernel
	alone func(ctx context.Context) error          // instead of edit and act: works on vgStore itself, takes its own locks, and runs while no other change does
	fast  bool                                     // a COW store fills up, so the change does not wait for slow acts of other volumes
	loose bool                                     // the caller leaves when ctx ends, even if the change may still be carried out
	done  chan error
	ctx   context.Context

	// Only the committer uses these until it answers.
	committed bool // the edit is on the disk
	noAct     bool // the edit found that act has nothing to do
}

// do carries out c. When do returns nil, c is on the disk and in the kernel. If ctx
// ends after c has begun, c continues, and do waits for it unless c is loose.
func (g *group) do(ctx context.Context, c *change) error {
	err := g.submit(ctx, c)
	var loss *unrecordedLoss
	if errors.As(err, &loss) { // an edit relies on recorded losses: record the loss, then edit again
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

// submit passes c to the committer and waits for the answer.
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
	case <-left: // the committer may be waiting for LVM2
		return fmt.Errorf("waiting for volume group %s: %w", g.vgName, context.Cause(ctx))
	case <-g.stopped:
		return fmt.Errorf("pool %s was closed: %w", g.name, ErrUnavailable)
	}
}
