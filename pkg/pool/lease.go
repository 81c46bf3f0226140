package pool

import (
	"fmt"
	"sync/atomic"
)

// lease is how long the act of a change may bring devices in line with its view.
// The committer ends it when it stops waiting for an act that hangs: LVM2's lock
// is given back then, and LVM2's own commands may change what the act knew. An act
// that returns from the kernel after that loads no table any more and resumes no
// device with one that it has loaded; it lets go what it has suspended.
//
// A view that an act is given has its lease, and so do the devices that come of it.
type lease struct{ over atomic.Bool }

// errLeft: the volumes are looked after when the act has ended.
var errLeft = fmt.Errorf("%w: the kernel did not answer in time and the volume group's lock was given back: the devices are brought in line again", ErrUnavailable)

// valid returns errLeft once the lease has ended. Without a lease there is no end.
func (l *lease) valid() error {
	if l != nil && l.over.Load() {
		return errLeft
	}
	return nil
}

// leased returns v as an act with that lease has it.
func (v *view) leased(l *lease) *view {
	own := *v
	own.lease = l
	return &own
}

// resume lets d go on with the table that is loaded.
func (p *Pool) resume(d device) error {
	if err := d.lease.valid(); err != nil {
		return err
	}
	return p.dm.Resume(d.name, d.udev)
}
