package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// carrier carries out the steps of a plan.
type carrier struct {
	*Pool
	view  *view
	k     kernel      // the devices after the steps so far
	still []device    // devices that the steps have suspended
	nodes []laterNode // nodes to be made once no device is suspended

	window  *holding // the open window; nil if there is none
	late    error    // errors of steps whose failure does not stop the plan
	trashed bool     // the caller holds mapper.trash
	keyed   bool     // the caller holds the key of the only store that the steps change, and has the latest metadata
}

// stepError is the error of a step that could not be carried out.
type stepError struct {
	step
	err error
}

func (e *stepError) Error() string { return fmt.Sprintf("%s %s: %v", e.do, e.name, e.err) }
func (e *stepError) Unwrap() error { return e.err }

// carryOut carries out a plan that was made from c.k, up to the first step that fails. In
// any case it resumes every device that it has suspended, after a failure with the device's
// old table. After ctx has ended, carryOut suspends no device, but it still carries out
// steps that need no suspend, so that a pool that is closing can remove its devices.
//
// Errors: *stepError for the step that failed.
func (c *carrier) carryOut(ctx context.Context, plan []step) (err error) {
	defer func() { err = errors.Join(err, c.late, c.letGo(), c.makeNodes(ctx)) }()
	for len(plan) > 0 {
		s, n := plan[0], 1
		if s.do != stepResume {
			if err := c.makeNodes(ctx); err != nil {
				return &stepError{s, err}
			}
		}
		if lv := c.store(s); lv != nil {
			for n < len(plan) && plan[n].uuid == s.uuid && c.store(plan[n]) != nil {
				n++
			}
			err = c.changeStore(ctx, lv, plan[:n])
		} else {
			err = c.carry(ctx, s)
		}
		if err != nil {
			return &stepError{s, err}
		}
		plan = plan[n:]
	}
	return nil
}

// letGo resumes the devices that are still suspended after a failed step, each with its
// old table.
func (c *carrier) letGo() error {
	var errs []error
	for _, d := range slices.Backward(c.still) {
		errs = append(errs, c.dm.Clear(d.name), c.dm.Resume(d.name, d.udev))
	}
	c.still = nil
	return errors.Join(errs...)
}

// makeNodes makes the nodes of resumed devices, unless a device is suspended. udev, which
// makes the nodes, may be slow, or wait for the suspended device.
func (c *carrier) makeNodes(ctx context.Context) error {
	if len(c.still) > 0 {
		return nil
	}
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, c.node(ctx, n.device, n.number))
	}
	c.nodes = nil
	return errors.Join(errs...)
}

// carry carries out one step.
func (c *carrier) carry(ctx context.Context, s step) error {
	d := c.k[s.uuid]
	if s.do == stepCreate {
		return c.create(s)
	}
	if d == nil {
		return fmt.Errorf("device %s is gone: another process removed it", s.name)
	}
	s.name = d.Name
	c.hold(s)
	if err := c.change(ctx, s, d); err != nil {
		return err
	}
	c.held(ctx, s)
	return nil
}

// change carries out a step on the existing device d.
func (c *carrier) change(ctx context.Context, s step, d *kernelDevice) error {
	switch s.do {
	case stepClear, stepSuspend, stepRename: // LVM2 may have loaded the table, or be about to resume
		if err := c.view.lease.valid(); err != nil {
			return err
		}
	}
	switch s.do {
	case stepClear:
		return c.dm.Clear(s.name)
	case stepLoad:
		return c.load(ctx, s, d)
	case stepSuspend:
		return c.suspend(ctx, s)
	case stepResume:
		return c.resume(s, d)
	case stepUsed:
		if real := c.k[c.view.realDevice(s.of.LV).uuid]; real != nil {
			c.noteBoundary(c.view, s.of, real.Device)
		}
	case stepRevive:
		c.late = errors.Join(c.late, c.reviveStore(ctx, c.view, s.of))
	case stepRename:
		renamed := *d
		renamed.Name = s.to
		c.k[s.uuid] = &renamed
		if err := errors.Join(c.dm.Rename(s.name, s.to, s.udev), c.dm.RemoveNode(s.name)); err != nil {
			return err
		}
		c.nodes = append(c.nodes, laterNode{device{name: s.to}, d.Device})
	case stepRemove:
		return c.remove(ctx, s)
	}
	return nil
}

func (c *carrier) create(s step) error {
	if err := s.lease.valid(); err != nil {
		return err
	}
	made, err := c.dm.Create(s.name, s.uuid)
	if err == nil {
		c.k[s.uuid] = &kernelDevice{Info: made, uuid: s.uuid}
	}
	return err
}

// load loads a table. If that fails for a new device, load removes the device.
func (c *carrier) load(ctx context.Context, s step, d *kernelDevice) error {
	table, complete := s.table.bind(c.k.number)
	err := s.lease.valid()
	if err == nil && !complete {
		err = errors.New("another process removed a device that its table needs")
	}
	if err == nil {
		err = c.loadTable(ctx, s, d, table)
	}
	if err != nil {
		if !d.Live && !d.Loaded {
			err = errors.Join(err, c.dm.Remove(s.name, s.udev))
			delete(c.k, s.uuid)
		}
		return err
	}
	d.Loaded = true
	if err := s.lease.valid(); err != nil { // the lease ended while the kernel constructed the table
		return errors.Join(err, c.dm.Clear(s.name))
	}
	return nil
}

// suspend suspends a device without freezing its file system, because the group's lock is
// held here. A cut that needs a frozen file system has frozen it before (freeze.go).
func (c *carrier) suspend(ctx context.Context, s step) error {
	limited, cancel := context.WithTimeout(ctx, windowLimit)
	defer cancel()
	err := c.dm.Suspend(limited, s.name, dm.SuspendOptions{SkipLockFS: true, NoFlush: s.noFlush, Running: true})
	if err != nil {
		return errors.Join(err, c.dm.Clear(s.name))
	}
	c.still = append(c.still, s.device)
	c.k[s.uuid].Suspended = true
	return nil
}

// resume resumes a device; a loaded table becomes active.
func (c *carrier) resume(s step, d *kernelDevice) error {
	if err := s.lease.valid(); err != nil {
		return err
	}
	if err := c.dm.Resume(s.name, s.udev); err != nil {
		return err
	}
	d.Live, d.Loaded, d.Suspended = true, false, false
	c.still = slices.DeleteFunc(c.still, func(x device) bool { return x.name == s.name })
	c.nodes = append(c.nodes, laterNode{s.device, d.Device})
	return nil
}

// remove removes a device. The loss of a layer that the kernel dropped is recorded
// first (*unrecordedLoss): the kernel's own mark may not outlive a power cut.
func (c *carrier) remove(ctx context.Context, s step) error {
	if s.layer != nil && !s.layer.Lost && c.dropped(s.device) {
		return &unrecordedLoss{layer: s.layer.LV.ID}
	}
	trash := c.view.OfTrash(s.uuid)
	if trash && !c.trashed {
		c.trash.Lock()
		defer c.trash.Unlock()
	}
	err := c.removeDevice(ctx, s.name, s.udev)
	if err == nil {
		delete(c.k, s.uuid)
	}
	if err == nil && trash {
		c.facts.noteSwept()
	}
	return err
}

// store returns the store whose device step s changes, if the store may grow while
// operations on its volume run; nil for other steps.
func (c *carrier) store(s step) *lvm2.LV {
	id, kind, _ := catalog.SplitUUID(c.view.VG.ID, s.uuid)
	lv := c.view.VG.LVByID(lvm2.ID(id))
	if c.keyed || kind != layerCOW || lv == nil || s.do == stepRemove || s.do == stepRename {
		return nil
	}
	if !c.view.IsStore(lv) {
		return nil
	}
	return lv
}

// changeStore carries out steps that change a store's device. It uses the store's table by
// the latest metadata, and holds the store's key, so that nothing else changes the device.
func (c *carrier) changeStore(ctx context.Context, lv *lvm2.LV, steps []step) error {
	return c.withStoreKey(ctx, lv.ID, func() error {
		now := c.current.Load()
		if latest := now.VG.LVByID(lv.ID); latest != nil {
			lv = latest
		} else {
			now = c.view
		}
		own, err := now.linearTable(lv)
		if err != nil {
			return err
		}
		at := slices.IndexFunc(steps, func(s step) bool { return s.do == stepLoad })
		if at < 0 {
			return c.letStoreGo(lv, steps[0])
		}
		table := stretched(own, steps[at].table.length())
		if has, err := c.runsWith(steps[at], table); has || err != nil { // a growth has already loaded the table
			return err
		}
		for _, s := range steps {
			if s.do == stepLoad {
				s.table = disks(table)
			}
			if err := c.carry(ctx, s); err != nil {
				return err
			}
		}
		return nil
	})
}

// runsWith reports whether the device of step s is already running with the table, in the
// mode that s would load.
func (c *carrier) runsWith(s step, table dm.Table) (bool, error) {
	info, err := c.find(s.device)
	if err != nil || info == nil || !info.Live || info.Suspended || info.Loaded || info.ReadOnly != s.readOnly {
		return false, err
	}
	live, err := c.dm.Table(info.Name)
	return live.Equal(table), err
}

// letStoreGo resumes the device of a store with its active table, and drops a loaded table.
// It does nothing while the brake holds the store's writers.
func (c *carrier) letStoreGo(lv *lvm2.LV, s step) error {
	info, err := c.find(s.device)
	if g, growing := c.facts.growing.get(lv.ID); err != nil || info == nil || growing && g.braked.Load() {
		return err
	}
	switch {
	case info.Suspended:
		return c.resumeAsWas(info, s.udev)
	case info.Loaded:
		return c.dm.Clear(info.Name)
	}
	return nil
}
