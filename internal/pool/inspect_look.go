package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// inspector reads a pool that it does not run.
type inspector struct {
	pool *Pool // never opened; provides its configuration, names and tables
}

// groupOpener is a function that opens a volume group to be inspected or changed.
type groupOpener func(ctx context.Context, h lvm2.Host, name string, search lvm2.Search) (*lvm2.Store, error)

// newInspector finds the pool's volume group on the machine's block devices.
func newInspector(ctx context.Context, c Config, o Options, open groupOpener) (*inspector, error) {
	c, o = c.withDefaults(), o.withDefaults()
	if err := c.Check(); err != nil {
		return nil, err
	}
	i := &inspector{pool: newPool(ctx, c, o)}
	i.pool.ctx = ctx
	if err := i.open(ctx, open); err != nil {
		return nil, fmt.Errorf("inspecting pool %s: %w", c.Name, errors.Join(err, i.close()))
	}
	return i, nil
}

func (i *inspector) open(ctx context.Context, open groupOpener) (err error) {
	p := i.pool
	if p.dm, err = dm.Open(); err != nil {
		return err
	}
	p.vgStore, err = open(ctx, p.host, p.vgName, p.search())
	if errors.Is(err, lvm2.ErrNotFound) && p.config.File != "" {
		return fmt.Errorf("%w: no loop device has volume group %s; the driver attaches %s when it starts", ErrUnavailable, p.vgName, p.config.File)
	}
	if errors.Is(err, lvm2.ErrNotFound) && p.config.Create {
		if devices, left, chosen := p.config.choose(nil); chosen == nil {
			err = errors.Join(err, p.config.hindrance(devices, left))
		}
	}
	if err != nil {
		return p.config.notOpened(err)
	}
	return nil
}

func (i *inspector) close() error { return i.pool.release() }

// locked calls f with the metadata that is on the disks. LVM2's shared lock is held
// during the call, so metadata and devices do not change. f must be quick, because
// a driver that wants to extend a store waits.
func (i *inspector) locked(ctx context.Context, f func(*view) error) error {
	return i.pool.underLock(ctx, lvm2.Shared, f)
}

// look is the state of the disks and the kernel at one moment.
type look struct {
	*inspector
	view     *view
	devices  kernel            // of the group
	names    map[string]string // UUIDs of all devices of the kernel, by name
	problems []error           // of the metadata on the disks
}

// look reads the metadata and all devices of the group.
func (i *inspector) look(ctx context.Context) (*look, error) {
	l := &look{inspector: i, names: map[string]string{}}
	err := i.locked(ctx, func(v *view) error {
		l.view, l.problems = v, i.pool.vgStore.Problems()
		all, err := i.pool.dm.List()
		if err != nil {
			return err
		}
		for _, e := range all {
			l.names[e.Name] = e.UUID
		}
		l.devices, err = lookAtAll(i.pool.dm, v.VG.ID, all, true)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("inspecting pool %s: %w", i.pool.name, err)
	}
	return l, nil
}

// at returns the kernel's device of a logical volume's layer; nil if there is none.
func (l *look) at(lv *lvm2.LV, layer string) *kernelDevice {
	return l.devices.at(l.view.VG.ID, lv, layer)
}

func (d *kernelDevice) state() DeviceState {
	s := DeviceState{
		Name: d.Name, Number: d.Device.String(), OpenCount: d.OpenCount, ReadOnly: d.ReadOnly, Suspended: d.Suspended,
		Table: []string{}, Uses: []string{},
	}
	if t := d.goesOn(); len(t) > 0 {
		s.Table = strings.Split(t.String(), "\n")
	}
	for _, u := range slices.Backward(devicesIn(d.table)) { // in the kernel's order
		s.Uses = append(s.Uses, u.String())
	}
	if d.status != nil {
		s.Status = d.status.String()
	}
	return s
}

// mountPoints returns the mount points of each device that this process sees.
func mountPoints() (map[dm.Device][]string, error) {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	out := map[dm.Device][]string{}
	for _, m := range all {
		dev := dm.Device{Major: uint32(m.Major), Minor: uint32(m.Minor)}
		if m.FSType == "btrfs" { // its mounts have their own device numbers
			if dev, err = dm.DeviceOf(m.Source); err != nil {
				continue
			}
		}
		out[dev] = append(out[dev], m.Mountpoint)
	}
	return out, nil
}
