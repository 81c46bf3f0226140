//go:build kernel

package pool

import (
	"bytes"
	"context"
	"slices"
)

// forestReader is a volume that shows a snapshot.
type forestReader struct {
	forestVolume
	shown content // content of the snapshot
}

// readerStep runs a random operation on a volume that shows a snapshot.
func (f *forest) readerStep(v *forestVolume, s string) string {
	ctx := context.Background()
	transient := f.r.IntN(2) == 0
	n := f.r.IntN(10)
	if len(f.readers) == 0 || n < 3 && len(f.readers) < 5 {
		spec := VolumeSpec{Name: f.name("x"), Mode: Block, ReadOnly: !transient, Transient: transient}
		var shown content
		switch {
		case s != "" && n != 0:
			spec.Source, shown = Source{Kind: FromSnapshot, LV: s}, f.snapshots[s]
		case v != nil:
			spec.Source, shown = Source{Kind: FromVolume, LV: v.lv}, bytes.Clone(v.content)
		default:
			return "nothing to read"
		}
		made, err := f.p.CreateVolume(ctx, spec)
		if noRoom(err) {
			return "reader refused"
		}
		ok(f.t, err)
		r := &forestReader{forestVolume{made.LV, "", bytes.Clone(shown)}, shown}
		f.activate(&r.forestVolume)
		f.readers = append(f.readers, r)
		return "read"
	}
	i := f.r.IntN(len(f.readers))
	r := f.readers[i]
	writable := must(f.p.Volume(ctx, r.lv))(f.t).Transient
	switch {
	case n < 4:
		ok(f.t, f.p.Deactivate(ctx, r.lv))
		ok(f.t, f.p.DeleteVolume(ctx, r.lv))
		f.readers = slices.Delete(f.readers, i, i+1)
		return "delete reader"
	case n < 5:
		ok(f.t, f.p.Deactivate(ctx, r.lv))
		f.activate(&r.forestVolume)
	case n < 6: // all devices go, as in a reboot
		ok(f.t, f.p.Deactivate(ctx, r.lv))
		ok(f.t, f.p.deactivate(ctx, r.lv))
		f.activate(&r.forestVolume)
		r.content = bytes.Clone(r.shown)
	case n < 8 && writable:
		r.scribble(f.t, f.r, r.path, 1+f.r.IntN(20))
		return "write reader"
	}
	r.compare(f.t, r.path, r.lv+", which shows a snapshot")
	return "compare reader"
}

// endReaders compares and deletes all volumes that show snapshots.
func (f *forest) endReaders() {
	ctx := context.Background()
	for _, r := range f.readers {
		r.compare(f.t, r.path, r.lv+", which shows a snapshot, in the end")
		ok(f.t, f.p.Deactivate(ctx, r.lv))
		ok(f.t, f.p.DeleteVolume(ctx, r.lv))
	}
}
