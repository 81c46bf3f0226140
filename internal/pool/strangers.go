package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// strangersPause is the pause between two searches for devices that pretend to be
// the pool's.
const strangersPause = 10 * time.Minute

// strangers returns the machine's devices that falsely claim to be a physical
// volume of vg, or that have another volume group of vg's name. Such a device is,
// for example, a tenant's volume or a copy of a disk. The pool ignores it, but it
// confuses people and lvm2's commands. lvs are the kernel names of logical volumes, which
// need not be asked.
func strangers(ctx context.Context, vg *lvm2.VG, lvs map[string]bool) ([]string, error) {
	all, err := blockDevices(lvs)
	if err != nil {
		return nil, err
	}
	disks, parts := map[string]bool{}, map[string]bool{}
	for _, pv := range vg.PVs {
		for n, l := range stackOf(pv.Device) {
			disks[l.Device] = disks[l.Device] || n == 0
			parts[l.Device] = true
		}
	}
	var paths []string
	on := map[string]string{}
	for _, path := range all {
		stack := stackOf(path)
		shows, waits := false, false // it shows a disk of the pool; a read of it waits
		for _, l := range stack {
			if l.Group != "" {
				on[path] = " on a logical volume of " + l.Group
			}
			shows = shows || disks[l.Device] && on[path] == ""
			waits = waits || l.Suspended
		}
		if len(stack) > 0 && stack[0].Group == "" && !parts[stack[0].Device] && !shows && !waits {
			paths = append(paths, path)
		}
	}
	found, err := lvm2.Scan(ctx, paths)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, d := range found {
		n := vg.PVIndex(d.PV)
		switch {
		case d.PV == "", d.Part != nil:
		case n >= 0 && vg.PVs[n].Device == "": // the group's problems explain why
		case n >= 0:
			out = append(out, fmt.Sprintf("device %s%s claims to be physical volume %v of volume group %s, but %s is", d.Path, on[d.Path], d.PV, vg.Name, vg.PVs[n].Device))
		case d.VG == vg.Name && d.VGID != vg.ID:
			out = append(out, fmt.Sprintf("device %s%s has another volume group of the name %s (%v)", d.Path, on[d.Path], vg.Name, d.VGID))
		}
	}
	return out, nil
}

func stackOf(path string) []lvm2.Layer {
	stack, _ := lvm2.Stack(path) // a device that is gone has no stack
	return stack
}

// strangersLoop looks for strangers periodically. A device that does not answer
// stops further searches, but does not keep the pool from being closed.
func (p *Pool) strangersLoop(ctx context.Context) {
	for {
		if v := p.current.Load(); v != nil {
			found := make(chan []string, 1)
			go func() {
				var s []string
				err := guard(p.log, func() (err error) { s, err = strangers(ctx, v.VG, p.lvDevices()); return err })
				if err != nil && ctx.Err() == nil {
					p.log.Error(err, "Failed to look for devices that pretend to be the pool's")
				}
				found <- s
			}()
			select {
			case s := <-found:
				p.outside.setStrangers(p.log, s)
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-time.After(strangersPause):
		case <-ctx.Done():
			return
		}
	}
}

// checkElsewhere refuses to create a volume group if a device that the
// configuration does not name has a group of the same name with tags of the driver.
// In that case the configuration is probably wrong.
func (c Config) checkElsewhere(ctx context.Context, h lvm2.Host) error {
	others, err := otherDevices()
	if err != nil {
		return err
	}
	found, err := lvm2.Scan(ctx, others)
	if err != nil {
		return err
	}
	for _, d := range found {
		if d.VG != c.VolumeGroup {
			continue
		}
		s, err := lvm2.FindVGReadOnly(ctx, h, d.VG, lvm2.Search{IDs: []lvm2.ID{d.VGID}, Others: otherDevices})
		if errors.Is(err, lvm2.ErrPart) {
			return unavailable(err)
		}
		if err != nil {
			continue // it cannot be a pool
		}
		vg, err := s.Read(ctx)
		s.Close()
		if err == nil && slices.ContainsFunc(vg.LVs, catalog.HasTags) {
			return fmt.Errorf("%w: volume group %s (%v) on %s has volumes of csi-dmsnap, but the configuration does not name the device; add it to devices, or remove the group if nobody needs it", ErrUnavailable, d.VG, d.VGID, d.Path)
		}
	}
	return nil
}

// notOpened returns the error for a group that was found, but cannot be used.
func (c Config) notOpened(err error) error {
	switch {
	case errors.Is(err, lvm2.ErrNotFound):
		return c.notFound(err)
	case errors.Is(err, lvm2.ErrDuplicateVG), errors.Is(err, lvm2.ErrDuplicatePV):
		return fmt.Errorf("%w; or choose one in the configuration, with devices or volumeGroupIDs", unavailable(err))
	}
	return unavailable(err)
}

// notFound returns the error for a group that was not found, with the place of the
// search.
func (c Config) notFound(err error) error {
	switch {
	case len(c.VolumeGroupIDs) > 0:
		return fmt.Errorf("%w: no volume group %s with an id of volumeGroupIDs is on this machine: %w", ErrUnavailable, c.VolumeGroup, err)
	case c.chosen():
		return fmt.Errorf("%w: no volume group %s on the configured devices; create it there with vgcreate, or give blank devices and create: true: %w", ErrUnavailable, c.VolumeGroup, err)
	}
	return fmt.Errorf("%w: no volume group %s on this machine; create it with vgcreate, or give blank devices and create: true: %w", ErrUnavailable, c.VolumeGroup, err)
}
