package pool

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// theirLV returns the logical volume of that name that LVM2 made and that
// people see, nil if there is none. It can be used as it is: it is activated,
// and never formatted, wiped, grown, cut or removed.
func (v *view) theirLV(name string) *lvm2.LV {
	lv := v.vg.LV(name)
	if lv == nil || snapshotSegment(lv) != nil {
		return nil
	}
	if _, untagged := v.decoded[lv].(foreign); !untagged {
		return nil
	}
	return lv
}

// notPlain says why a logical volume of LVM2's own is more than a linear device
// of its own; "" if it is not. Only LVM2 knows how to activate such.
func (v *view) notPlain(lv *lvm2.LV) string {
	switch users := v.vg.Users(lv.Name); {
	case len(users) > 0:
		return "LVM2 uses it for " + strings.Join(users, ", ")
	case !slices.Contains(lv.Status, lvm2.StatusVisible):
		return "it is an inner part of LVM2's"
	case !linear(lv):
		return "it is not linear"
	}
	return ""
}

// notOurs is the error of what only volumes of the pool can do.
func (v *view) notOurs(lv *lvm2.LV) error {
	return fmt.Errorf("logical volume %s/%s: %w: LVM2 made it, so it can only be staged and published as it is; `csi-dmsnap import POOL %[2]s` makes it a volume of the pool",
		v.vg.Name, lv.Name, ErrPrecondition)
}

func (v *view) describeTheirs(lv *lvm2.LV) Volume {
	return Volume{Name: lv.Name, LV: lv.Name, Size: v.bytesOf(lv), ReadOnly: readOnlyLV(lv), Formatted: true, Foreign: true}
}

// activateTheirs returns the path of the device of a logical volume of LVM2's
// own. One that is active is taken as it is.
func (p *Pool) activateTheirs(ctx context.Context, v *view, lv *lvm2.LV) (string, error) {
	d := p.device(v, lv, "", udevVisible)
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
	table, err := p.linearTable(v, lv)
	if err != nil {
		return "", err
	}
	dev, _, err := p.ensureFrom(info, d, table, readOnlyLV(lv))
	if err != nil {
		return "", err
	}
	if err := p.start(ctx, d, dev); err != nil {
		return "", err
	}
	return p.dm.Node(d.name), nil
}
