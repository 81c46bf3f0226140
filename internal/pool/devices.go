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

// single makes a device by itself, which no convergence knows of, or makes the one that is
// there what it should be: running, with that table.
func (p *Pool) single(ctx context.Context, v *view, d device, table dm.Table, readOnly bool) (dm.Device, error) {
	for again := true; ; again = false {
		k := kernel{}
		info, err := p.find(d)
		if err == nil && info != nil {
			k[d.uuid], err = lookAt(p.dm, dm.ListEntry{Name: info.Name, UUID: d.uuid}, false)
		}
		if err == nil {
			w := &wanted{device: d, table: disks(table), readOnly: readOnly}
			err = (&carrier{Pool: p, view: v, k: k}).carryOut(ctx, w.alone(k[d.uuid]))
		}
		if again && (errors.Is(err, dm.ErrExists) || errors.Is(err, dm.ErrNotFound)) { // it came, or went, just now
			continue
		}
		if err != nil {
			return dm.Device{}, err
		}
		return k[d.uuid].Device, nil
	}
}

// alone returns the steps that make a device, d in the kernel, what is wanted, where no
// other device of the group has to do with it.
func (w *wanted) alone(d *kernelDevice) []step {
	s := step{device: w.device, table: w.table, readOnly: w.readOnly}
	var dos []stepKind
	table, _ := w.table.bind(nil)
	switch {
	case d == nil:
		dos = []stepKind{stepCreate, stepLoad, stepResume}
	case !d.Live || !d.table.Equal(table) || d.ReadOnly != w.readOnly:
		dos = []stepKind{stepLoad, stepResume}
	case d.Suspended:
		dos = []stepKind{stepResume}
	}
	if d != nil && d.Loaded { // left by an interrupted change
		dos = append([]stepKind{stepClear}, dos...)
	}
	var steps []step
	for _, s.do = range dos {
		steps = append(steps, s)
	}
	return steps
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
