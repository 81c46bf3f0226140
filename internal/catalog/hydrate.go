package catalog

import (
	"errors"
	"fmt"
)

// ErrHydrated: the volume is not a fork, or no longer, so nothing is left to hydrate.
var ErrHydrated = errors.New("no longer a fork")

// ForkOf returns lv with the layer and volume that it reads through; ErrHydrated if
// lv is no fork.
func (v *View) ForkOf(lv string) (*Volume, *Layer, *Volume, error) {
	o := v.VolumeByLV(lv)
	if o == nil || !o.Forked() {
		return nil, nil, nil, ErrHydrated
	}
	if o.Odd != nil {
		return nil, nil, nil, fmt.Errorf("volume %s/%s: %w: %s", v.VG.Name, lv, ErrPrecondition, o.Theirs())
	}
	l, source, err := v.Origin(o)
	return o, l, source, err
}

// Hydrated makes o an ordinary volume.
func (t *Edit) Hydrated(o *Volume, l *Layer) error {
	c := o.LV.Clone()
	c.Tags = DropTags(c.Tags, tagCopy, tagHydrated)
	if !o.Deleted {
		handBack(c)
	}
	if err := t.Put(c); err != nil {
		return err
	}
	if live := o.Live(); live != nil {
		c := live.LV.Clone()
		handBack(c)
		if err := t.Put(c); err != nil {
			return err
		}
	}
	if err := t.Discard(o.Fork.LV); err != nil {
		return err
	}
	return t.Prune(l)
}
