package pool

import (
	"context"
	"errors"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// offline calls f with a pool for a command that changes the metadata while a driver
// may be running. The pool is not open: it has no goroutines and does not hold its
// lock file. Its context is the command's context.
func offline(ctx context.Context, c Config, o Options, f func(p *Pool) error) (err error) {
	i, err := newInspector(ctx, c, o, lvm2.FindVG)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, i.close()) }()
	return f(i.pool)
}

// underLock reads the metadata from the disks and calls f with the view. It holds
// LVM2's lock on the group, so no driver and no LVM2 command changes the metadata until f
// returns. The pool must not be open, because in an open pool only the committer reads.
func (g *group) underLock(ctx context.Context, mode lvm2.LockMode, f func(v *view) error) error {
	lock, err := g.host.LockVG(ctx, g.vgName, mode)
	if err != nil {
		return unavailable(err)
	}
	defer func() {
		if err := lock.Unlock(); err != nil { // only logged: the changes by f are on the disk
			klog.FromContext(ctx).Error(err, "Failed to release the volume group's lock", "volumeGroup", g.vgName)
		}
	}()
	v, err := g.read()
	if err != nil {
		return err
	}
	return f(v)
}

// once commits an edit of v, the view from underLock, and returns the view after the edit.
func (g *group) once(ctx context.Context, v *view, edit func(t *edit) error) (*view, error) {
	c := &change{ctx: ctx, done: make(chan error, 1), edit: edit}
	now, done := g.edit(v, []*change{c})
	if len(done) == 0 {
		return nil, <-c.done
	}
	return now, nil
}
