package lvm2

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Device is the result of Scan for a device.
type Device struct {
	Path string
	Size size.Bytes
	PV   ID     // id of the physical volume; empty: not a physical volume
	VG   string // name of its volume group; empty: none, or not known from the scanned devices
	VGID ID
	Part error // why the device is, or may be, only a part of another device, see ErrPart
	Err  error // why the device or its metadata is unreadable; wraps ErrDamaged if LVM2's data is damaged
}

// Scan reads the labels and metadata of devices. The result has one Device for each
// path, in order.
//
// Errors: the cause of ctx's end. The errors of a device are in its Device.
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
