package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// up makes the volume's device and the devices below it, or brings existing devices in line
// with v. The devices of a reader in use stay as they are if its content is lost, and reads
// of the reader fail. Devices that LVM2 manages stay as they are too.
func (p *Pool) up(ctx context.Context, v *view, o *catalog.Volume) error {
	top, err := p.find(v.topDevice(o.LV))
	if err != nil {
		return err
	}
	if why := o.Theirs(); why != "" {
		if top != nil && top.Live {
			return nil // the tables are LVM2's
		}
		if o.Odd == nil {
			why = fmt.Sprintf("%s; activate it with lvchange -ay %s/%s", why, v.VG.Name, o.LV.Name)
		}
		return fmt.Errorf("volume %s/%s: %w: %s", v.VG.Name, o.LV.Name, ErrPrecondition, why)
	}
	if l := v.Layers.Get(o.From()); top != nil && top.Live && o.Reading() && l != nil && v.Volumes.Get(l.Of).Theirs() != "" {
		return nil
	}
	err = p.convergeTo(ctx, v, o.LV.Name, demand{up: o.LV.ID})
	if err != nil && top == nil {
		err = errors.Join(err, p.converge(ctx, v, o.LV.Name)) // remove the devices that were made for it
	}
	return err
}

// settle brings the devices of a volume, if it has any, in line with the view v after a
// commit. If settle fails, the volume is unsettled, and the caretaker retries.
func (p *Pool) settle(ctx context.Context, v *view, lv string) error {
	o := v.VolumeByLV(lv)
	if o == nil {
		return nil
	}
	top, err := p.find(v.topDevice(o.LV))
	if err != nil || top == nil {
		return errors.Join(err, p.converge(ctx, v, lv))
	}
	if err = p.up(ctx, v, o); err != nil {
		p.facts.unsettled.put(o.LV.ID, true)
	}
	return err
}

// down removes the volume's device, and the devices below it unless somebody reads a
// snapshot through them. It does nothing if LVM2 manages the volume. Errors: ErrInUse if the
// volume's device is open.
func (p *Pool) down(ctx context.Context, v *view, o *catalog.Volume) error {
	if o.Theirs() != "" {
		return nil
	}
	err := p.convergeTo(ctx, v, o.LV.Name, demand{down: o.LV.ID})
	if err == nil {
		return nil
	}
	if info, failed := p.find(v.topDevice(o.LV)); failed != nil || info != nil {
		return errors.Join(err, failed)
	}
	p.log.Error(err, "A deactivated volume still has devices; removing them will be retried", "volume", o.LV.Name)
	return nil
}

// reachable returns an error if the volume that the operation asks for reads through a layer
// that is lost or lies too deep. A reader in use stays as it is if its content is lost, and
// reads of the reader fail.
func (c *convergence) reachable(k kernel) error {
	v, o := c.view, c.view.Volumes.Get(cmp.Or(c.asked.up, c.asked.content))
	if o == nil || v.Layers.Get(o.From()) == nil || v.Circular(o) != nil {
		return nil // the plan reports a missing layer or a circle
	}
	l := v.Layers.Get(o.From())
	err := c.readable(v, v.Volumes.Get(l.Of), l)
	if err == nil {
		err = c.intact(v, v.Volumes.Get(l.Of), l)
	}
	top := k[v.topDevice(o.LV).uuid]
	if errors.Is(err, ErrLost) && c.asked.up != "" && o.Reading() && top != nil && top.Live {
		return nil
	}
	return err
}

// chainUp makes the content of layer l of o readable and returns its device's path.
func (p *Pool) chainUp(ctx context.Context, v *view, o *catalog.Volume, l *catalog.Layer) (string, error) {
	if why := o.Theirs(); why != "" {
		return "", fmt.Errorf("snapshot %s: %w: volume %s: %s", l.LV.Name, ErrPrecondition, o.LV.Name, why)
	}
	if err := p.readable(v, o, l); err != nil {
		return "", err
	}
	if o.Live() == nil {
		return "", fmt.Errorf("snapshot %s: %w: its volume %s has no live layer", l.LV.Name, ErrPrecondition, o.LV.Name)
	}
	if err := p.convergeTo(ctx, v, o.LV.Name, demand{read: l.LV.ID}); err != nil {
		return "", err
	}
	info, err := p.found(v.snapDevice(l.LV))
	if err != nil {
		return "", err
	}
	return p.dm.EnsureNode(ctx, info.Name, info.Device)
}

// forkUp makes the device by which the fork o reads through its snapshot, or, for a reader,
// the device on which the journal is replayed.
func (p *Pool) forkUp(ctx context.Context, v *view, o *catalog.Volume) error {
	return p.convergeTo(ctx, v, o.LV.Name, demand{content: o.LV.ID})
}

// blocks returns the table of the device with the volume's content. If the volume is a fork,
// blocks first makes the fork's devices, to which the table refers.
func (p *Pool) blocks(ctx context.Context, v *view, o *catalog.Volume) (dm.Table, error) {
	if !o.Forked() {
		return v.linearTable(o.LV)
	}
	c := p.convergence(v, o.LV.Name, demand{content: o.LV.ID})
	if err := c.converge(ctx); err != nil {
		return nil, err
	}
	return c.blocks(o)
}

// blocks returns the table of the device with o's content, with the numbers of the kernel's
// devices. It returns an error if one of these devices is gone.
func (c *convergence) blocks(o *catalog.Volume) (dm.Table, error) {
	wanted, err := c.want.blocks(o)
	if err != nil {
		return nil, err
	}
	table, complete := wanted.bind(c.kernel.number)
	if !complete {
		return nil, fmt.Errorf("volume %s/%s: a device that it reads through is gone", c.view.VG.Name, o.LV.Name)
	}
	return table, nil
}

// cutTable returns the part of a linear table between two sectors.
func cutTable(t dm.Table, from, to size.Sectors) dm.Table {
	var out dm.Table
	for _, s := range t {
		lo, hi := max(from, s.Start), min(to, s.Start+s.Length)
		if lo < hi {
			l := s.Target.(dm.Linear)
			out = append(out, dm.Segment{Start: lo, Length: hi - lo, Target: dm.Linear{Device: l.Device, Offset: l.Offset + lo - s.Start}})
		}
	}
	return out
}
