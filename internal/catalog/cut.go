package catalog

import (
	"fmt"
	"strconv"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// CutLayer is a layer after its cut: the kernel has cut the volume, or the volume has no
// device.
type CutLayer struct {
	Layer lvm2.ID
	At    time.Time // of the cut
	// Clean is set if a mounted file system was frozen at the cut, so that the layer
	// needs no recovery. If it is not set, the layer may or may not need recovery.
	Clean bool
}

// Record records a finished cut: its time, and the name of its snapshot unless name is "".
func (t *Edit) Record(c CutLayer, name string) error {
	lv := t.VG.LVByID(c.Layer)
	if lv == nil {
		return fmt.Errorf("layer %s: %w: removed by somebody else", c.Layer, ErrNotFound)
	}
	lv = lv.Clone()
	lv.Tags = SetTag(lv.Tags, tagCreated, strconv.FormatInt(c.At.UnixNano(), 10))
	if name != "" {
		lv.Tags = SetTag(lv.Tags, tagName, name)
	}
	return t.Put(lv)
}

// Freeze turns the live layer into a plain logical volume that LVM2 neither writes nor
// activates. exact is set if the layer receives no more copies.
func (t *Edit) Freeze(l *Layer, exact bool) error {
	if err := t.Remove(l.Snap.ID); err != nil {
		return err
	}
	c := t.VG.LVByID(l.LV.ID).Clone() // perhaps marked as lost by this edit
	c.Status = []string{lvm2.StatusRead, lvm2.StatusVisible}
	HandOff(c)
	if exact {
		c.Tags = SetTag(c.Tags, tagExact)
	}
	return t.Put(c)
}

// Withdraw takes back a cut that the kernel has not made: l, the live layer, becomes trash, and
// the layer that Freeze froze for it is live again. Nothing may have been copied into l.
func (t *Edit) Withdraw(l *Layer) error {
	o := t.Volumes.Get(l.Of)
	if err := t.Discard(l.LV); err != nil {
		return err
	}
	former := o.FrozenFor(l)
	if former == nil {
		return nil
	}
	c := t.VG.LVByID(former.LV.ID).Clone() // perhaps longer than at the cut
	c.Status = []string{lvm2.StatusRead, lvm2.StatusWrite}
	if handBack(c); o.Forked() {
		HandOff(c)
	}
	if err := t.Put(c); err != nil {
		return err
	}
	return t.Join(o, c, former.Length.Bytes(), former.Chunk)
}
