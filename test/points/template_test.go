//go:build kernel && points

package points

import (
	"context"
	"errors"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// template is the content of the pool before an operation.
type template struct {
	images  []image
	objects map[string]*object
	order   []string
}

// build makes an operation's template.
func (c *campaign) build(op *operation) (*template, error) {
	if err := c.blank(nil); err != nil {
		return nil, err
	}
	r := &rig{dm: c.dm, disks: c.disks, config: c.config(), objects: map[string]*object{}, w: c.w, pair: op.pair}
	defer func() { c.w = r.w }()
	if op.config != nil {
		op.config(&r.config)
	}
	options := lvm2.CreateOptions{ExtentSize: extent, MetadataSize: size.MiB}
	err := lvm2.CreateVG(context.Background(), lvm2.Host{}, group, r.paths(), options)
	if err == nil && r.pair {
		err = lvm2.CreateVG(context.Background(), lvm2.Host{}, secondGroup, r.second().Devices, options)
	}
	if err != nil {
		return nil, err
	}
	if err := r.open(); err != nil {
		return nil, err
	}
	if err := op.build(r); err != nil {
		return nil, err
	}
	if !op.busy {
		if err := r.until(nil); err != nil {
			return nil, err
		}
	}
	for _, o := range r.objects {
		if o.path != "" {
			if err := r.deactivate(o.name); err != nil {
				return nil, err
			}
		}
	}
	if err := r.close(); err != nil {
		return nil, err
	}
	if err := takeDown(c.dm); err != nil {
		return nil, err
	}
	t := &template{objects: map[string]*object{}, order: r.order}
	for _, o := range r.objects {
		t.objects[o.name] = o.fresh()
	}
	for _, d := range c.disks {
		img, err := d.save()
		if err != nil {
			return nil, err
		}
		t.images = append(t.images, img)
	}
	return t, nil
}

// blank removes all devices and restores the disks from the images, or empties
// the disks if there are none.
func (c *campaign) blank(images []image) error {
	if err := takeDown(c.dm); err != nil {
		return err
	}
	for i, d := range c.disks {
		var img image
		if images != nil {
			img = images[i]
		}
		if err := errors.Join(d.power(c.dm, true), d.restore(img)); err != nil {
			return err
		}
	}
	return nil
}
