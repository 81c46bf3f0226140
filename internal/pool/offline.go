package pool

import (
	"context"
	"errors"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// offline calls f with the pool of a command that changes the metadata beside the
// driver, or without one. That pool is not open: nothing runs in it and nobody has
// its lock. Its context is the command's.
func offline(ctx context.Context, c Config, o Options, f func(p *Pool) error) (err error) {
	i, err := newInspector(ctx, c, o, lvm2.FindVG)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, i.close()) }()
	return f(i.pool)
}

// underLock calls f with the metadata as they are on the disks. LVM2's lock on the
// group is held meanwhile, so no driver and no command of LVM2's changes them. It is
// for a pool that is not open: in one that is, the committer alone reads.
func (g *group) underLock(ctx context.Context, mode lvm2.LockMode, f func(v *view) error) error {
	lock, err := g.host.LockVG(ctx, g.vgName, mode)
	if err != nil {
		return unavailable(err)
	}
	defer func() {
		if err := lock.Unlock(); err != nil { // what f did is on the disk all the same
			klog.FromContext(ctx).Error(err, "Releasing the volume group's lock", "volumeGroup", g.vgName)
		}
	}()
	v, err := g.read()
	if err != nil {
		return err
	}
	return f(v)
}

// once commits the edit of v, which underLock has given, and returns the view after it.
func (g *group) once(ctx context.Context, v *view, edit func(t *edit) error) (*view, error) {
	c := &change{ctx: ctx, done: make(chan error, 1), edit: edit}
	now, done := g.edit(v, []*change{c})
	if len(done) == 0 {
		return nil, <-c.done
	}
	return now, nil
}
