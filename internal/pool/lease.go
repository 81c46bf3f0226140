package pool

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// leaseLook bounds how long an abandoned act waits to read the metadata. The act may
// hold a suspended device during this time.
const leaseLook = 2 * time.Second

// lease permits the act of a change to bring devices in line with its view.
//
// The committer stops waiting for an act that takes too long, and releases LVM2's lock.
// LVM2's own commands may then change the metadata that the act relies on. From this
// moment the act reads the metadata before each step. If another process has changed
// the metadata, the lease ends: the act loads no table, resumes no device with a table
// that it has loaded, and resumes the devices that it has suspended with their old
// tables. If nobody has changed the metadata, the act continues, because the kernel may
// need long to read a large store. This process does not change the act's volume in
// the meantime, because the operation holds the volume's key.
//
// The view passed to an act carries the lease, and so do the devices made from the view.
type lease struct {
	group *group
	left  atomic.Bool
	seen  atomic.Uint64 // changes by other processes before the act was abandoned
	over  atomic.Bool
}

// errLeft is the error of an act whose lease has ended. The caretaker brings the
// volumes in line after the act has ended.
var errLeft = fmt.Errorf("%w: the kernel did not answer in time, and lvm2 changed the volume group in the meantime; the driver brings the devices in line again", ErrUnavailable)

// leave tells the act that the committer no longer waits for it.
func (l *lease) leave() {
	l.seen.Store(l.group.foreign.Load())
	l.left.Store(true)
}

// valid returns errLeft once the lease has ended; an ended lease stays ended. A nil
// lease never ends.
func (l *lease) valid() error {
	if l == nil || !l.left.Load() {
		return nil
	}
	if l.over.Load() {
		return errLeft
	}
	ctx, cancel := context.WithTimeout(l.group.ctx, leaseLook)
	defer cancel()
	if err := l.group.refresh(ctx); err != nil || l.group.foreign.Load() != l.seen.Load() {
		l.over.Store(true)
		return errors.Join(errLeft, err)
	}
	return nil
}

// leased returns a copy of v that carries the lease l.
func (v *view) leased(l *lease) *view {
	own := *v
	own.lease = l
	return &own
}

// resumeAsWas resumes a suspended device with its active table. A loaded table is dropped.
func (p *Pool) resumeAsWas(info *dm.Info, udev dm.Udev) error {
	if info.Loaded {
		if err := p.dm.Clear(info.Name); err != nil {
			return err
		}
	}
	return p.dm.Resume(info.Name, udev)
}
