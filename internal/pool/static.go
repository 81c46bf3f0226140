package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

func (v *view) describeTheirs(lv *lvm2.LV) Volume {
	return Volume{Name: lv.Name, LV: lv.Name, Size: v.BytesOf(lv), ReadOnly: catalog.ReadOnlyLV(lv), Formatted: true, Foreign: true}
}

// StaticUse returns an error unless a static volume may use a logical volume of
// LVM2's: a tag must allow it (ErrPrecondition), and its device must not be in use
// (ErrInUse). The device is in use if it is mounted, active swap, below another
// device, or open in a process; none of these count if it is staged already.
// StaticUse waits a little for programs that briefly open all devices.
func (p *Pool) StaticUse(ctx context.Context, lv string, staged bool) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	their := v.TheirLV(lv)
	if their == nil {
		return nil
	}
	if err := v.StaticUse(their); err != nil || staged {
		return err
	}
	return p.awaitClosed(ctx, v, their)
}

// AllowStatic marks a logical volume of LVM2's as one that a static volume may
// name, after probe has examined its device. It changes nothing else. The pool may
// be open, in this process or another.
//
// Errors: ErrNotFound, ErrInUse (the host uses it), ErrPrecondition (it is internal
// to LVM2, or the pool's), ErrUnavailable.
func AllowStatic(ctx context.Context, c Config, o Options, lv string, probe func(ctx context.Context, device string) error) error {
	return offline(ctx, c, o, func(p *Pool) error {
		return p.underLock(ctx, lvm2.Exclusive, func(v *view) error { return p.allowStatic(ctx, v, lv, probe) })
	})
}

// allowStatic is AllowStatic under LVM2's lock.
func (p *Pool) allowStatic(ctx context.Context, v *view, lv string, probe func(ctx context.Context, device string) error) error {
	at := v.VG.Name + "/" + lv
	their := v.TheirLV(lv)
	if their == nil {
		if v.VG.LV(lv) == nil {
			return fmt.Errorf("logical volume %s: %w", at, ErrNotFound)
		}
		return fmt.Errorf("logical volume %s: %w: it is the pool's own", at, ErrPrecondition)
	}
	if v.StaticUse(their) == nil {
		return nil
	}
	if why := v.Inner(their); why != "" {
		return fmt.Errorf("logical volume %s: %w: %s", at, ErrPrecondition, why)
	}
	if err := p.awaitClosed(ctx, v, their); err != nil {
		return err
	}
	if err := p.withDevice(ctx, v, their, func(path string) error { return probe(ctx, path) }); err != nil {
		return err
	}
	_, err := p.once(ctx, v, func(t *edit) error { return t.Put(catalog.AllowedStatic(their)) })
	if errors.Is(err, lvm2.ErrForeignSegment) {
		err = fmt.Errorf("%w: lvchange --addtag %s %s", err, catalog.StaticTag(), at)
	}
	return err
}

// withDevice calls f with the path of the device of a logical volume of LVM2's. If
// it is not active, withDevice activates it for the duration of f.
func (p *Pool) withDevice(ctx context.Context, v *view, lv *lvm2.LV, f func(path string) error) (err error) {
	d := v.topDevice(lv)
	before, err := p.find(d)
	if err != nil {
		return err
	}
	path, err := p.activateTheirs(ctx, v, lv)
	if err != nil {
		return err
	}
	if before == nil || !before.Live {
		defer func() { err = errors.Join(err, p.takeDown(context.WithoutCancel(ctx), d)) }()
	}
	return f(path)
}

// activateTheirs returns the path of the device of a logical volume of LVM2's. It
// uses an active device as it is.
func (p *Pool) activateTheirs(ctx context.Context, v *view, lv *lvm2.LV) (string, error) {
	d := v.topDevice(lv)
	info, err := p.find(d)
	if err != nil {
		return "", err
	}
	if info != nil && info.Live {
		return p.dm.EnsureNode(ctx, info.Name, info.Device)
	}
	if why := v.NotPlain(lv); why != "" {
		return "", fmt.Errorf("logical volume %s/%s: %w: it is not active, and %s; activate it with lvchange -ay %[1]s/%[2]s", v.VG.Name, lv.Name, ErrPrecondition, why)
	}
	table, err := v.linearTable(lv)
	if err != nil {
		return "", err
	}
	dev, err := p.single(ctx, v, d, table, catalog.ReadOnlyLV(lv))
	if err != nil {
		return "", err
	}
	return p.dm.EnsureNode(ctx, d.name, dev)
}
