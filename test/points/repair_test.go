//go:build kernel && points

package points

import (
	"errors"
	"fmt"
)

// variants are the operations that an operation stands for: itself, or for a repair
// one for each point at which the operation before it is cut.
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

// errNotMet says that the operation before a repair came to its end without the point at
// which it was to be cut: what is done in the background has more points in one run than in the next.
var errNotMet = errors.New("the point was not met")

// interrupt cuts the operation before a repair short. The next worker is to be killed at the n-th point.
func (c *campaign) interrupt(op *operation, t *template, n int) (*rig, error) {
	r, err := c.begin(op.first, t, op.cutAt)
	if err == nil {
		err = r.perform(op.first)
	}
	if err == nil {
		_, err = r.settle()
	}
	if err == nil {
		err = r.arm(0) // until here work in the background may meet the point
	}
	if !errors.Is(err, errCut) {
		if err == nil {
			err = errNotMet
		}
		return r, err
	}
	r.w, r.opened, r.config = nil, false, c.config()
	if r.w, err = startWorker(); err != nil {
		return r, err
	}
	return r, r.arm(n)
}

// repair opens the pool, which is what may be cut, and then does what was interrupted.
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
