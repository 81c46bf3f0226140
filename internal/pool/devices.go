package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Layers of LVM2's device names. layerReal is the device with the blocks of a volume that
// has a snapshot. layerCOW is the device with the store of a snapshot.
const (
	layerReal = "real"
	layerCOW  = "cow"
)

// Udev flags that LVM2 sends with each kind of device. The driver sends the same flags, so
// that udev neither scans nor links hidden devices.
const (
	udevVisible  = dm.UdevPrimarySource
	udevReal     = dm.UdevPrimarySource | dm.UdevDisableSubsystem | dm.UdevDisableDisk | dm.UdevDisableOther
	udevSnapshot = dm.UdevPrimarySource | dm.UdevLowPriority
	udevCOW      = udevReal | dm.UdevLowPriority
)

const (
	busyLimit   = 3 * time.Second        // longest time that a scan, as by udev, keeps a device open
	removeLimit = 500 * time.Millisecond // the same while the group's lock is held
	busyPause   = 20 * time.Millisecond
)

// device is a device-mapper device of the metadata. It need not exist in the kernel.
type device struct {
	name, uuid string
	udev       dm.Udev
	lease      *lease // of the act that works on the device; nil outside of acts
}

// device returns the device of a logical volume with the given layer in its name.
func (v *view) device(lv *lvm2.LV, layer string, udev dm.Udev) device {
	return device{name: lvm2.DMName(v.VG.Name, lv.Name, layer), uuid: lvm2.DMUUID(v.VG.ID, lv.ID, layer), udev: udev, lease: v.lease}
}

// The first four devices are also known to LVM2. topDevice is the device that users of a
// volume open. realDevice has the volume's blocks below a snapshot. snapDevice is the
// snapshot of a layer. cowDevice is the store of a layer or a fork. forkDevice is ours: the
// snapshot through which a fork reads its source.
func (v *view) topDevice(lv *lvm2.LV) device  { return v.device(lv, "", udevVisible) }
func (v *view) realDevice(lv *lvm2.LV) device { return v.device(lv, layerReal, udevReal) }
func (v *view) snapDevice(lv *lvm2.LV) device { return v.device(lv, "", udevSnapshot) }
func (v *view) cowDevice(lv *lvm2.LV) device  { return v.device(lv, layerCOW, udevCOW) }
func (v *view) forkDevice(lv *lvm2.LV) device { return v.device(lv, layerFork, udevReal) }

// find returns the kernel's device with the UUID of d, which a rename does not change; nil
// if there is none.
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

// found is find for a device that must exist: it returns an error if the device is gone.
func (p *Pool) found(d device) (*dm.Info, error) {
	info, err := p.find(d)
	if err == nil && info == nil {
		err = fmt.Errorf("device %s is gone: another process removed it; it will be created again when it is needed", d.name)
	}
	return info, err
}

// linearTable returns the table that maps lv onto its physical volumes.
func (v *view) linearTable(lv *lvm2.LV) (dm.Table, error) {
	ranges, err := catalog.Physical(lv)
	if err != nil {
		return nil, fmt.Errorf("volume group %s: %w", v.VG.Name, err)
	}
	var t dm.Table
	for _, r := range ranges {
		pv := v.VG.PVs[r.PV]
		if err := v.Missing(pv); err != nil {
			return nil, fmt.Errorf("logical volume %s/%s: %w", v.VG.Name, lv.Name, err)
		}
		t = append(t, dm.Segment{
			Start: t.Length(), Length: sectors(v, r.Count),
			Target: dm.Linear{Device: diskOf(pv), Offset: pv.PEStart + sectors(v, r.Start)},
		})
	}
	return t, nil
}

func sectors(v *view, n lvm2.Extents) size.Sectors { return size.Sectors(n) * v.VG.ExtentSize }

func whole(length size.Sectors, t dm.Target) dm.Table {
	return dm.Table{{Start: 0, Length: length, Target: t}}
}

// single makes a device outside of convergences, or corrects the existing device, so that
// it runs with the given table.
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
		if again && (errors.Is(err, dm.ErrExists) || errors.Is(err, dm.ErrNotFound)) { // another process made or removed the device just now
			continue
		}
		if err != nil {
			return dm.Device{}, err
		}
		return k[d.uuid].Device, nil
	}
}

// alone returns the steps that turn d, the kernel's device or nil, into w, where no other
// device of the group is involved.
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
	if d != nil && d.Loaded { // left over from an interrupted change
		dos = append([]stepKind{stepClear}, dos...)
	}
	var steps []step
	for _, s.do = range dos {
		steps = append(steps, s)
	}
	return steps
}

// node makes the node of d in /dev/mapper, for the kernel's device dev. If ctx collects
// nodes for later, node adds to them instead.
func (p *Pool) node(ctx context.Context, d device, dev dm.Device) error {
	if later, held := ctx.Value(nodesKey{}).(*nodesLater); held {
		*later = append(*later, laterNode{d, dev})
		return nil
	}
	_, err := p.dm.EnsureNode(ctx, d.name, dev)
	return err
}
