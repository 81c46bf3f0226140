package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// theirLV returns the visible logical volume of that name that LVM2 made; nil if
// there is none. The driver may activate it, but never formats, wipes, grows, cuts
// or removes it. StaticUse reports whether a static volume may use it.
func (v *view) theirLV(name string) *lvm2.LV {
	lv := v.vg.LV(name)
	if lv == nil || snapshotSegment(lv) != nil {
		return nil
	}
	if !v.isTheirs(lv) {
		return nil
	}
	return lv
}

// notPlain returns why a logical volume of LVM2's is more than a plain linear
// device; "" if it is not. Only LVM2 knows how to activate such a logical volume.
func (v *view) notPlain(lv *lvm2.LV) string {
	switch users := v.vg.Users(lv.Name); {
	case len(users) > 0:
		return "LVM2 uses it for " + strings.Join(users, ", ")
	case !slices.Contains(lv.Status, lvm2.StatusVisible):
		return "it is internal to LVM2"
	case !linear(lv):
		return "it is not linear"
	}
	return ""
}

// notOurs returns the error of an operation that only volumes of the pool support.
func (v *view) notOurs(lv *lvm2.LV) error {
	return fmt.Errorf("logical volume %s/%s: %w: LVM2 made it, so it can only be staged and published as it is; `csi-dmsnap import POOL %[2]s` makes it a volume of the pool",
		v.vg.Name, lv.Name, ErrPrecondition)
}

func (v *view) describeTheirs(lv *lvm2.LV) Volume {
	return Volume{Name: lv.Name, LV: lv.Name, Size: v.bytesOf(lv), ReadOnly: readOnlyLV(lv), Formatted: true, Foreign: true}
}

// inner returns what a logical volume is a part of, or that it has no content of
// its own; "" if people use it directly.
func (v *view) inner(lv *lvm2.LV) string {
	if !slices.Contains(lv.Status, lvm2.StatusVisible) || strings.HasPrefix(lv.Name, "pvmove") {
		return "it is internal to LVM2"
	}
	for _, s := range lv.Segments {
		if strings.HasSuffix(s.Type, "-pool") {
			return "it is a " + s.Type
		}
	}
	for _, x := range v.vg.LVs {
		if s := snapshotSegment(x); s != nil && s.COWStore == lv.Name {
			return "it is the store of a snapshot of " + s.Origin
		}
	}
	return ""
}

// staticUse returns an error if a static volume must not name a logical volume of
// LVM2's. The host's own logical volumes are in the same group, and a user who may
// create a PersistentVolume need not be one who may give them away.
func (v *view) staticUse(lv *lvm2.LV) error {
	at := v.vg.Name + "/" + lv.Name
	if why := v.inner(lv); why != "" {
		return fmt.Errorf("logical volume %s: %w: %s", at, ErrPrecondition, why)
	}
	if d, ok := v.decoded[lv].(foreign); !ok || !d.static {
		return fmt.Errorf("logical volume %s: %w: LVM2 made it, and it is not marked for static volumes; mark it on its node with `csi-dmsnap import --static POOL %s`, or with lvchange --addtag %s %s",
			at, ErrPrecondition, lv.Name, tag(tagStatic), at)
	}
	return nil
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
	their := v.theirLV(lv)
	if their == nil {
		return nil
	}
	if err := v.staticUse(their); err != nil || staged {
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
	at := v.vg.Name + "/" + lv
	their := v.theirLV(lv)
	if their == nil {
		if v.vg.LV(lv) == nil {
			return fmt.Errorf("logical volume %s: %w", at, ErrNotFound)
		}
		return fmt.Errorf("logical volume %s: %w: it is the pool's own", at, ErrPrecondition)
	}
	if v.staticUse(their) == nil {
		return nil
	}
	if why := v.inner(their); why != "" {
		return fmt.Errorf("logical volume %s: %w: %s", at, ErrPrecondition, why)
	}
	if err := p.awaitClosed(ctx, v, their); err != nil {
		return err
	}
	if err := p.withDevice(ctx, v, their, func(path string) error { return probe(ctx, path) }); err != nil {
		return err
	}
	_, err := p.once(ctx, v, func(t *edit) error { return t.put(allowedStatic(their)) })
	if errors.Is(err, lvm2.ErrForeignSegment) {
		err = fmt.Errorf("%w: lvchange --addtag %s %s", err, staticTag(), at)
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
	if why := v.notPlain(lv); why != "" {
		return "", fmt.Errorf("logical volume %s/%s: %w: it is not active, and %s; activate it with lvchange -ay %[1]s/%[2]s", v.vg.Name, lv.Name, ErrPrecondition, why)
	}
	table, err := v.linearTable(lv)
	if err != nil {
		return "", err
	}
	dev, err := p.single(ctx, v, d, table, readOnlyLV(lv))
	if err != nil {
		return "", err
	}
	return p.dm.EnsureNode(ctx, d.name, dev)
}
