package lvm2

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Device is what Scan found on a device.
type Device struct {
	Path string
	Size size.Bytes
	PV   ID     // empty: not a physical volume
	VG   string // name of its volume group; empty: none, or not known from the devices scanned
	VGID ID
	Part error // why it is no physical volume by itself, as a path of a multipath map
	Err  error // why the device, or metadata on it, could not be read; wraps ErrDamaged if it is LVM2's but damaged
}

// Scan reads the labels and metadata of devices. The result has one entry for
// each path, in order.
func Scan(ctx context.Context, devices []string) ([]Device, error) {
	f := &finder{}
	defer f.close()
	result := make([]Device, len(devices))
	for i, path := range devices {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("scan devices: %w", context.Cause(ctx))
		}
		result[i] = Device{Path: path}
		f.scan(&result[i])
	}
	for _, a := range f.newest() {
		vg, err := ParseVG(a.text)
		for i := range result {
			switch {
			case result[i].PV == "":
			case err != nil && result[i].Path == a.dev.path:
				result[i].Err = errors.Join(result[i].Err, fmt.Errorf("device %s: %w", a.dev.path, err))
			case err == nil && vg.PVIndex(result[i].PV) >= 0:
				result[i].VG, result[i].VGID = vg.Name, vg.ID
			}
		}
	}
	return result, nil
}

func (f *finder) scan(into *Device) {
	d, err := openDevice(into.Path, os.O_RDONLY)
	if err != nil {
		into.Err = err
		return
	}
	f.opened = append(f.opened, d)
	into.Size = d.size
	p, err := inspect(d)
	if p == nil {
		into.Err = err
		return
	}
	f.disks = append(f.disks, p)
	into.PV, into.Part = p.label.id, p.partOf()
	for _, a := range p.areas {
		into.Err = errors.Join(into.Err, a.err)
	}
}
