package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The device of a live layer's store is as long as the layer can ever use. The part
// that has no extents yet lies on a gate: a device that is suspended, so that a
// writer who needs a chunk there waits by itself, for as long as it takes. The
// table of a gate is one segment that fails: a gate that is resumed as it is
// makes the kernel drop the snapshot, as if the store were full.
//
// A store grows in three steps, and each can be the last one of a process:
//
//	make   a second gate, for the part that has no extents after the growth either
//	open   the first one: its table becomes the new extents, and the second gate; writers go on
//	flatten the store's device: its table becomes all extents, and the second gate; the first one goes
//
// Flattening suspends the store's device, and that waits for writers inside the
// gate. If there are any again it is left for later; gates may form a chain.
//
// A gate must never have a table that knows caches of disks while it is suspended
// (dm sends a flush of the store's device to everything in its table): that of an
// error target knows none, and a flush of it ends at once.
const (
	layerGate   = "gate" // and a digit
	mostGates   = 10     // of one store
	flattenWait = 500 * time.Millisecond
)

// gatePrefix begins the UUIDs of gates. It is LVM2's own, so that blkid, lsblk and
// LVM2 take a gate for a hidden device and do not read it; but not that of a
// volume group: LVM2's commands resume what they find suspended below a volume.
const gatePrefix = "LVM-dmsnap-"

// gate is a gate in the kernel.
type gate struct {
	device
	dev   dm.Device
	start size.Sectors // its place in the store's device, where that leads to it
	table dm.Table     // the live one; where the store's device leads to it
}

func (v *view) gateDevice(lv *lvm2.LV, n int) device {
	layer := layerGate + strconv.Itoa(n)
	return device{
		name: lvm2.DMName(v.vg.Name, lv.Name, layer),
		uuid: gatePrefix + string(v.vg.ID) + string(lv.ID) + "-" + layer,
		udev: udevCOW, lease: v.lease,
	}
}

// splitGate returns the logical volume whose store a gate belongs to.
func splitGate(vg lvm2.ID, uuid string) (lv lvm2.ID, ok bool) {
	rest, ok := strings.CutPrefix(uuid, gatePrefix+string(vg))
	if !ok || len(rest) < 32 {
		return "", false
	}
	return lvm2.ID(rest[:32]), true
}

// closed says whether the gate's table is that of a gate behind which nothing lies.
func (g *gate) closed() bool {
	if len(g.table) != 1 {
		return false
	}
	_, is := g.table[0].Target.(dm.ErrorTarget)
	return is
}

// gates are those of one store.
type gates struct {
	all  []*gate // that the kernel has
	path []*gate // to which the store's device leads, in order
}

// last returns the gate at the end of the store's device; nil if there is none.
func (g gates) last() *gate {
	if len(g.path) == 0 {
		return nil
	}
	return g.path[len(g.path)-1]
}

// gatesOf finds the gates of a store whose device has the given table.
func (p *Pool) gatesOf(v *view, lv *lvm2.LV, table dm.Table) (found gates, err error) {
	all, err := p.dm.List()
	if err != nil {
		return found, err
	}
	byDevice := map[dm.Device]*gate{}
	for _, e := range all {
		if id, is := splitGate(v.vg.ID, e.UUID); is && id == lv.ID {
			g := &gate{device: device{name: e.Name, uuid: e.UUID, udev: udevCOW, lease: v.lease}, dev: e.Device}
			found.all, byDevice[e.Device] = append(found.all, g), g
		}
	}
	for at := size.Sectors(0); len(table) > 0 && len(found.path) < len(found.all); {
		end := table[len(table)-1]
		l, _ := end.Target.(dm.Linear)
		g := byDevice[l.Device]
		if g == nil {
			break
		}
		at += end.Start
		if table, err = p.dm.Table(g.name); err != nil {
			return found, err
		}
		g.start, g.table = at, table
		found.path = append(found.path, g)
	}
	return found, nil
}

// makeGate makes a closed gate of the given length for a store.
func (p *Pool) makeGate(ctx context.Context, v *view, lv *lvm2.LV, have gates, length size.Sectors) (*gate, error) {
	for n := range mostGates {
		d := v.gateDevice(lv, n)
		if slices.ContainsFunc(have.path, func(g *gate) bool { return g.uuid == d.uuid }) {
			continue
		}
		table := whole(length, dm.ErrorTarget{})
		dev, pending, err := p.ensure(d, table, false)
		if errors.Is(err, dm.ErrExists) { // a logical volume of that name had it, and it is in use still
			continue
		}
		if err == nil && pending {
			err = p.dm.Resume(d.name, d.udev)
		}
		if err == nil {
			err = p.dm.Suspend(ctx, d.name, dm.SuspendOptions{SkipLockFS: true})
		}
		return &gate{device: d, dev: dev, table: table}, err
	}
	return nil, fmt.Errorf("store %s/%s has %d gates behind each other: its writers wait too often to join them", v.vg.Name, lv.Name, mostGates)
}

// gated makes the device of a store what the metadata says: its extents, flat, and
// behind them a gate up to the length most. d is the device, info what the
// kernel has of it; nil if it has none. The store's key is held.
func (p *Pool) gated(ctx context.Context, v *view, lv *lvm2.LV, d device, info *dm.Info, flat dm.Table, most size.Sectors) (dm.Device, error) {
	live, err := p.onlyLive(info)
	if err != nil {
		return dm.Device{}, err
	}
	have, err := p.gatesOf(v, lv, live)
	if err != nil {
		return dm.Device{}, err
	}
	want, next, last := slices.Clone(flat), (*gate)(nil), have.last()
	if start := flat.Length(); start < most {
		if last != nil && last.closed() && last.start == start && last.table.Length() == most-start {
			next = last
			err = p.dm.Suspend(ctx, next.name, dm.SuspendOptions{SkipLockFS: true}) // it may have been opened
		} else {
			next, err = p.makeGate(ctx, v, lv, have, most-start)
		}
		if err != nil {
			return dm.Device{}, err
		}
		want = append(want, dm.Segment{Start: start, Length: most - start, Target: dm.Linear{Device: next.dev}})
	}
	if info == nil || !info.Live {
		dev, _, err := p.ensureFrom(info, d, want, false)
		if err == nil {
			err = p.start(ctx, d, dev)
		}
		return dev, err
	}
	if next != nil && last != nil && last != next && last.closed() || next == nil && last != nil && last.closed() && flat.Length() > last.start {
		if err := p.openGate(last, want); err != nil {
			return dm.Device{}, err
		}
	}
	flattened := live.Equal(want) && !info.ReadOnly
	switch {
	case !flattened:
		if flattened, err = p.flatten(ctx, d, info, want, last); err != nil {
			return dm.Device{}, err
		}
	case info.Suspended:
		err = p.dm.Resume(info.Name, d.udev)
	}
	switch {
	case err == nil && flattened:
		err = p.dropGates(ctx, have.all, next)
	case err == nil && next == nil:
		err = fmt.Errorf("store %s/%s: writers wait in its gate", v.vg.Name, lv.Name)
	}
	return info.Device, err
}

// onlyLive clears the loaded table of a device that an interrupted change has left,
// and returns the live one; nil if there is none.
func (p *Pool) onlyLive(info *dm.Info) (dm.Table, error) {
	if info == nil {
		return nil, nil
	}
	if info.Loaded {
		if err := p.dm.Clear(info.Name); err != nil {
			return nil, err
		}
	}
	if !info.Live {
		return nil, nil
	}
	return p.dm.Table(info.Name)
}

// openGate gives a gate the part of a table that begins where the gate does. What
// the table does not reach fails. Who waits inside goes on.
func (p *Pool) openGate(g *gate, table dm.Table) error {
	length := g.table.Length()
	tail := stretched(cutTable(table, g.start, min(table.Length(), g.start+length)), length)
	at := size.Sectors(0)
	for i := range tail {
		tail[i].Start, at = at, at+tail[i].Length
	}
	if err := g.lease.valid(); err != nil {
		return err
	}
	if err := p.dm.Load(g.name, tail, false); err != nil {
		return err
	}
	return p.resume(g.device)
}

// flatten gives a store's device its table, and tells whether it has it. Where
// writers wait in its gate already it keeps the chain of gates that leads to the
// same places.
func (p *Pool) flatten(ctx context.Context, d device, info *dm.Info, want dm.Table, last *gate) (bool, error) {
	if err := p.dm.Load(info.Name, want, false); err != nil {
		return false, err
	}
	limited, cancel := context.WithTimeout(ctx, windowLimit)
	if last != nil {
		limited, cancel = context.WithTimeout(ctx, flattenWait)
	}
	defer cancel()
	err := p.swap(limited, device{name: info.Name, uuid: d.uuid, udev: d.udev, lease: d.lease}, info.Suspended, dm.SuspendOptions{SkipLockFS: true}, nothing)
	if last != nil && limited.Err() != nil && ctx.Err() == nil {
		return false, nil
	}
	return err == nil, err
}

// dropGates removes gates but one. Those that are in use stay.
func (p *Pool) dropGates(ctx context.Context, all []*gate, but *gate) error {
	var errs []error
	for range all { // they may lie on each other
		all = slices.DeleteFunc(slices.Clone(all), func(g *gate) bool {
			if but != nil && g.uuid == but.uuid {
				return true
			}
			err := p.dm.Remove(g.name, g.udev)
			if err == nil || errors.Is(err, dm.ErrNotFound) {
				errs = append(errs, p.dm.RemoveNode(g.name))
				return true
			}
			if !errors.Is(err, dm.ErrBusy) {
				errs = append(errs, err)
			}
			return false
		})
	}
	return errors.Join(errs...)
}

// gatesDown removes the gates of a store that has no device any more.
func (p *Pool) gatesDown(ctx context.Context, v *view, lv *lvm2.LV) error {
	if !p.config.Gate {
		return nil
	}
	have, err := p.gatesOf(v, lv, nil)
	if err != nil {
		return err
	}
	return p.dropGates(ctx, have.all, nil)
}

// endGate returns the gate at the end of a store; nil if it has none.
func (p *Pool) endGate(v *view, lv *lvm2.LV) (*gate, error) {
	if !p.config.Gate {
		return nil, nil
	}
	table, err := p.tableOf(v.cowDevice(lv))
	if err != nil || table == nil {
		return nil, err
	}
	have, err := p.gatesOf(v, lv, table)
	if g := have.last(); err == nil && g != nil && g.closed() {
		return g, nil
	}
	return nil, err
}

// failGate lets a store run over: whoever waits for a chunk of it goes on, and
// the kernel drops the snapshot.
func (p *Pool) failGate(v *view, lv *lvm2.LV) error {
	g, err := p.endGate(v, lv)
	if err != nil || g == nil {
		return err
	}
	return p.resumeGate(g.name)
}

// resumeGate opens a gate as it is.
func (p *Pool) resumeGate(name string) error {
	if err := p.dm.Clear(name); err != nil { // a growth was about to open it
		return err
	}
	return p.dm.Resume(name, udevCOW)
}
