package pool

import (
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// store is a COW store that the kernel may fill: the store of a layer, or of a
// fork.
type store struct {
	lv     *lvm2.LV
	of     *volume      // writes to this volume fill the store
	chunk  size.Sectors // unit of copying
	length size.Sectors // length of the part that can change
	fork   bool         // the store holds the writes to a fork, so it must not be lost
}

// storeOf returns the store with that logical volume's id; nil if the id is not a
// store's.
func (v *view) storeOf(id lvm2.ID) *store {
	if l := v.layers[id]; l != nil && !l.trimmed {
		return l.store(v.volumes[l.of])
	}
	if f := v.forks[id]; f != nil {
		return v.forkStore(v.volumes[f.of])
	}
	return nil
}

func (l *layer) store(o *volume) *store {
	return &store{lv: l.lv, of: o, chunk: l.chunk, length: l.length}
}

// forkStore returns the store that holds the writes to a fork; nil if o is not a
// fork, or if its store or the content that it reads through is gone.
func (v *view) forkStore(o *volume) *store {
	l, _, err := v.origin(o)
	if err != nil || v.lostOrigin(o) {
		return nil
	}
	return &store{lv: o.fork.lv, of: o, chunk: o.fork.chunk, length: l.length, fork: true}
}

// largest returns the size beyond which the store would be useless.
func (v *view) largest(s *store) lvm2.Extents {
	return v.extents(cow.LargestUseful(s.length.Bytes(), s.chunk.Bytes()))
}

// snapshotDevice returns the device whose status shows how full the store is.
func (p *Pool) snapshotDevice(v *view, s *store) device {
	if s.fork {
		return v.forkDevice(s.of.lv)
	}
	return v.snapDevice(s.lv)
}

// readThrough reports whether a fork reads through o's history. Then o's live layer
// must not be lost, or I/O to the fork would fail.
func (v *view) readThrough(o *volume) bool {
	for _, x := range v.volumes {
		if l := v.layers[x.copyOf]; l != nil && l.of == o.lv.ID && x.fork != nil && !v.lostOrigin(x) {
			return true
		}
	}
	return false
}

// lostOrigin reports whether the metadata records the loss of a layer that a fork
// reads through, directly or not.
func (v *view) lostOrigin(o *volume) bool {
	for o.forked() {
		l := v.layers[o.copyOf]
		if l == nil || o.fork == nil {
			return true
		}
		o = v.volumes[l.of]
		if slices.ContainsFunc(o.path(l), func(x *layer) bool { return x.lost }) {
			return true
		}
	}
	return false
}

// lostSnapshot reports whether the metadata records the loss of a layer's content:
// the loss of its own store, or of a layer that it reads through, in its volume's
// history or below.
func (v *view) lostSnapshot(l *layer) bool {
	o := v.volumes[l.of]
	return slices.ContainsFunc(o.path(l), func(x *layer) bool { return x.lost }) || v.lostOrigin(o)
}

// kept reports whether the writers that fill s must wait rather than lose s.
func (p *Pool) kept(v *view, s *store) bool { return s.fork || p.keep(v, s.of) }
