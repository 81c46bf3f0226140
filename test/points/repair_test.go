//go:build kernel && points

package points

import (
	"errors"
	"fmt"
)

// variants returns the operations that op stands for: op itself or, for a
// repair, one operation for each point at which the operation before it is cut.
func (c *campaign) variants(op *operation, t *template) ([]*operation, error) {
	if op.first == nil {
		return []*operation{op}, nil
	}
	passed, err := c.dry(op.first, t)
	if err != nil {
		return nil, fmt.Errorf("%s without a cut: %w", op.first.name, err)
	}
	var all []*operation
	for i, name := range passed {
		if op.at(name) {
			v := *op.first
			v.name, v.first, v.cutAt = op.name, op.first, i+1
			all = append(all, &v)
		}
	}
	return all, nil
}

// errNotMet is returned when the operation before a repair ended without
// reaching the point at which it was to be cut. Background work has more points
// in one run than in the next.
var errNotMet = errors.New("the point was not reached")

// interrupt cuts the operation before a repair. The next worker will be killed
// at the n-th point.
func (c *campaign) interrupt(op *operation, t *template, n int) (*rig, error) {
	r, err := c.begin(op.first, t, op.cutAt)
	if err == nil {
		err = r.perform(op.first)
	}
	if err == nil {
		_, err = r.settle()
	}
	if err == nil {
		err = r.arm(0) // until here background work may reach the point
	}
	if !errors.Is(err, errCut) {
		if err == nil {
			err = errNotMet
		}
		return r, err
	}
	r.w, r.opened, r.config = nil, false, c.config()
	if r.left, err = r.stopped(); err != nil {
		return r, err
	}
	if r.w, err = startWorker(); err != nil {
		return r, err
	}
	return r, r.arm(n)
}

// repair opens the pool, which is the step that may be cut, and then repeats
// the interrupted operation.
func (r *rig) repair(op *operation) (err error) {
	if err := r.open(); err != nil {
		return err
	}
	if err := r.leftSuspended(); err != nil {
		return err
	}
	if r.points, err = r.settle(); err != nil {
		return err
	}
	if err := r.arm(0); err != nil {
		return err
	}
	if op.ready != nil {
		if err := op.ready(r); err != nil {
			return err
		}
	}
	return op.act(r)
}
