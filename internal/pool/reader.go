package pool

import (
	"errors"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// A reader is a volume that shows a snapshot and never copies it. A read-only reader has no
// extents: for LVM2 it is a logical volume of type error.
//
//	pool-vol      linear    <pool-snapK>, read-only
//
// A transient reader keeps writes in its own extents, and the list of these writes only in the
// kernel's memory (scratch.go).

// newReader adds a volume of n extents that shows a layer.
func (p *Pool) newReader(t *edit, spec VolumeSpec, n lvm2.Extents, layer lvm2.ID, from catalog.Original) (lv *lvm2.LV, err error) {
	kind, err := t.KindOf(from.Volume)
	if err != nil {
		return nil, err
	}
	var chunk size.Sectors
	if spec.ReadOnly {
		if lv, err = p.blankVolume(t, spec, n); err != nil {
			return nil, err
		}
		lv.Status = []string{lvm2.StatusRead, lvm2.StatusVisible}
		lv.Segments = []lvm2.Segment{{Count: n, Type: lvm2.TypeError}}
	} else {
		if chunk, err = scratchChunk(p.config.Chunk, size.Bytes(n)*t.ExtentSize()); err != nil {
			return nil, err
		}
		if lv, err = p.newVolume(t, spec, kind, n, 0); err != nil {
			return nil, err
		}
		// Reads from the extents return only data that the kernel copied from the snapshot.
		catalog.SetContent(lv, from.Formatted, from.Unknown)
	}
	catalog.Show(lv, layer, chunk)
	return lv, t.Put(lv)
}

// readerHealth returns the conditions of a reader and of the layer that it shows.
func (p *Pool) readerHealth(v *view, o *catalog.Volume) []Condition {
	l, source, err := v.ReadFrom(o)
	if err == nil {
		err = p.intact(v, source, l)
	}
	if errors.Is(err, ErrLost) {
		return []Condition{{DataLoss, "SourceLost", fmt.Sprintf("the snapshot that it shows is gone: %v; delete it", err)}}
	}
	if err != nil {
		return []Condition{{Inaccessible, "SourceUnreadable", err.Error()}}
	}
	return append(v.disksOf(source.LV), p.scratchHealth(v, o)...)
}
