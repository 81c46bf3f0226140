package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Layers of LVM2's device names: of a volume with a snapshot the device that
// has its blocks, and of a snapshot the device that has its store.
const (
	layerReal = "real"
	layerCOW  = "cow"
)

// Udev flags that LVM2 sends with each kind of device, so that its rules treat
// ours alike: hidden devices are neither scanned nor linked.
const (
	udevVisible  = dm.UdevPrimarySource
	udevReal     = dm.UdevPrimarySource | dm.UdevDisableSubsystem | dm.UdevDisableDisk | dm.UdevDisableOther
	udevSnapshot = dm.UdevPrimarySource | dm.UdevLowPriority
	udevCOW      = udevReal | dm.UdevLowPriority
)

const (
	busyLimit   = 3 * time.Second        // how long a device may stay open in passing, as by a scan of udev
	removeLimit = 500 * time.Millisecond // the same where the group's lock is held
	busyPause   = 20 * time.Millisecond
)

// device is one dm device that the metadata calls for.
type device struct {
	name, uuid string
	udev       dm.Udev
	lease      *lease // of the act that works on it; nil: none does
}

// device is the device of a logical volume in that layer of LVM2's names.
func (v *view) device(lv *lvm2.LV, layer string, udev dm.Udev) device {
	return device{name: lvm2.DMName(v.vg.Name, lv.Name, layer), uuid: lvm2.DMUUID(v.vg.ID, lv.ID, layer), udev: udev, lease: v.lease}
}

// The devices that LVM2 has, too: the one of a volume that its users open; the
// volume's blocks below a snapshot; a layer's snapshot; the store of a layer or
// a fork. And the snapshot through which a fork reads what it is restored from.
func (v *view) topDevice(lv *lvm2.LV) device  { return v.device(lv, "", udevVisible) }
func (v *view) realDevice(lv *lvm2.LV) device { return v.device(lv, layerReal, udevReal) }
func (v *view) snapDevice(lv *lvm2.LV) device { return v.device(lv, "", udevSnapshot) }
func (v *view) cowDevice(lv *lvm2.LV) device  { return v.device(lv, layerCOW, udevCOW) }
func (v *view) forkDevice(lv *lvm2.LV) device { return v.device(lv, layerFork, udevReal) }

// find returns the kernel's device with d's UUID, which survives renames; nil if there is none.
func (p *Pool) find(d device) (*dm.Info, error) {
	info, err := p.dm.InfoByUUID(d.uuid)
	if errors.Is(err, dm.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &info, nil
}

// found does what find does for a device that was there a moment ago.
func (p *Pool) found(d device) (*dm.Info, error) {
	info, err := p.find(d)
	if err == nil && info == nil {
		err = fmt.Errorf("device %s is gone: somebody else removed it; it is made again when it is needed", d.name)
	}
	return info, err
}

// linearTable maps lv onto its physical volumes.
func (v *view) linearTable(lv *lvm2.LV) (dm.Table, error) {
	ranges, err := physical(lv)
	if err != nil {
		return nil, fmt.Errorf("volume group %s: %w", v.vg.Name, err)
	}
	var t dm.Table
	for _, r := range ranges {
		pv := v.vg.PVs[r.PV]
		if err := v.missing(pv); err != nil {
			return nil, fmt.Errorf("logical volume %s/%s: %w", v.vg.Name, lv.Name, err)
		}
		t = append(t, dm.Segment{
			Start: t.Length(), Length: sectors(v, r.Count),
			Target: dm.Linear{Device: diskOf(pv), Offset: pv.PEStart + sectors(v, r.Start)},
		})
	}
	return t, nil
}

func sectors(v *view, n lvm2.Extents) size.Sectors { return size.Sectors(n) * v.vg.ExtentSize }

func whole(length size.Sectors, t dm.Target) dm.Table {
	return dm.Table{{Start: 0, Length: length, Target: t}}
}

// ensure makes d with the given table live if it is absent, and loads the
// table into its inactive slot if it has another one. It reports the device
// and whether it needs a resume to take the table in use.
func (p *Pool) ensure(d device, table dm.Table, readOnly bool) (dm.Device, bool, error) {
	info, err := p.find(d)
	if err != nil {
		return dm.Device{}, false, err
	}
	return p.ensureFrom(info, d, table, readOnly)
}

// ensureFrom does what ensure does where find has told before what there is, or
// where nothing should be: then info is nil, and looking first would be in vain.
func (p *Pool) ensureFrom(info *dm.Info, d device, table dm.Table, readOnly bool) (dm.Device, bool, error) {
	if err := d.lease.valid(); err != nil {
		return dm.Device{}, false, err
	}
	if info == nil {
		made, err := p.dm.Create(d.name, d.uuid)
		if errors.Is(err, dm.ErrExists) {
			found, failed := p.find(d)
			if failed != nil || found == nil { // another device has the name
				return dm.Device{}, false, errors.Join(err, failed)
			}
			return p.ensureFrom(found, d, table, readOnly)
		}
		if err != nil {
			return dm.Device{}, false, err
		}
		if err := p.dm.Load(d.name, table, readOnly); err != nil {
			return dm.Device{}, false, errors.Join(err, p.dm.Remove(d.name, d.udev))
		}
		return made.Device, true, nil
	}
	if info.Loaded {
		// Left by an interrupted change. The kernel refuses a second snapshot
		// on the same store even where it would take the first one's place.
		if err := p.dm.Clear(info.Name); err != nil {
			return dm.Device{}, false, err
		}
	}
	if info.Live {
		live, err := p.dm.Table(info.Name)
		if err != nil {
			return dm.Device{}, false, err
		}
		if live.Equal(table) && info.ReadOnly == readOnly {
			return info.Device, info.Suspended, nil
		}
	}
	if err := p.dm.Load(info.Name, table, readOnly); err != nil {
		return info.Device, true, err
	}
	if err := d.lease.valid(); err != nil { // it ended while the kernel made the table
		return info.Device, true, errors.Join(err, p.dm.Clear(info.Name))
	}
	return info.Device, true, nil
}

// start resumes d, which is the kernel's device dev, and makes its node.
func (p *Pool) start(ctx context.Context, d device, dev dm.Device) error {
	if err := p.resume(d); err != nil {
		return err
	}
	return p.node(ctx, d, dev)
}

// node sees to it that the node of d, the kernel's device dev, is in /dev/mapper.
func (p *Pool) node(ctx context.Context, d device, dev dm.Device) error {
	if later, held := ctx.Value(nodesKey{}).(*nodesLater); held {
		*later = append(*later, laterNode{d, dev})
		return nil
	}
	_, err := p.dm.EnsureNode(ctx, d.name, dev)
	return err
}

func readOnlyLV(lv *lvm2.LV) bool { return !slices.Contains(lv.Status, lvm2.StatusWrite) }
