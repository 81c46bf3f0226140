package pool

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// leaseLook is how long an act that was left behind waits to see the metadata. It may
// have a device suspended meanwhile.
const leaseLook = 2 * time.Second

// lease is how long the act of a change may bring devices in line with its view.
// The committer stops waiting for an act that takes long and gives LVM2's lock back:
// LVM2's own commands may then change what the act knew. From then on the act looks
// at the metadata before each step, and its lease has ended once somebody else has
// changed them: it loads no table any more and resumes no device with one that it has
// loaded; it lets go what it has suspended. Else it goes on: the kernel may need long
// to read a large store. Nobody here changes the act's volume meanwhile, the
// operation has its key.
//
// A view that an act is given has its lease, and so do the devices that come of it.
type lease struct {
	group *group
	left  atomic.Bool
	seen  atomic.Uint64 // changes by others before the act was left behind
	over  atomic.Bool
}

// errLeft: the volumes are looked after when the act has ended.
var errLeft = fmt.Errorf("%w: the kernel did not answer in time, and lvm2 has changed the volume group meanwhile: the devices are brought in line again", ErrUnavailable)

// leave says that the committer does not wait for the act any more.
func (l *lease) leave() {
	l.seen.Store(l.group.foreign.Load())
	l.left.Store(true)
}

// valid returns errLeft once the lease has ended, for good. Without a lease there is no end.
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

// leased returns v as an act with that lease has it.
func (v *view) leased(l *lease) *view {
	own := *v
	own.lease = l
	return &own
}

// resumeAsWas lets a suspended device go on with the table that it has, not one that is loaded.
func (p *Pool) resumeAsWas(info *dm.Info, udev dm.Udev) error {
	if info.Loaded {
		if err := p.dm.Clear(info.Name); err != nil {
			return err
		}
	}
	return p.dm.Resume(info.Name, udev)
}
