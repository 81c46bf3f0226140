package pool

import (
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// store is a COW store that the kernel may fill: of a layer, or of a fork.
type store struct {
	lv     *lvm2.LV
	of     *volume      // who writes to it fills the store
	chunk  size.Sectors // unit of copying
	length size.Sectors // of what can be changed
	fork   bool         // it has what was written to the volume: it must not be lost
}

// storeOf finds the store that is the logical volume of that id; nil if it is none.
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

// forkStore returns the store of what is written to a fork; nil if o is none, or
// its store or what it reads through is gone.
func (v *view) forkStore(o *volume) *store {
	l, _, err := v.origin(o)
	if err != nil || v.lostOrigin(o) {
		return nil
	}
	return &store{lv: o.fork.lv, of: o, chunk: o.fork.chunk, length: l.length, fork: true}
}

// largest is the size beyond which the store could not be used.
func (v *view) largest(s *store) lvm2.Extents {
	return v.extents(cow.LargestUseful(s.length.Bytes(), s.chunk.Bytes()))
}

// snapshotDevice is the device whose status tells how full the store is.
func (p *Pool) snapshotDevice(v *view, s *store) device {
	if s.fork {
		return v.forkDevice(s.of.lv)
	}
	return v.snapDevice(s.lv)
}

// readThrough tells whether a fork reads through o's history: its live layer must
// not be lost, or who writes to the fork gets errors.
func (v *view) readThrough(o *volume) bool {
	for _, x := range v.volumes {
		if l := v.layers[x.copyOf]; l != nil && l.of == o.lv.ID && x.fork != nil && !v.lostOrigin(x) {
			return true
		}
	}
	return false
}

// lostOrigin tells whether what a fork reads through, directly or not, is on
// record as lost.
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

// lostSnapshot reports whether the content of a layer is on record as lost: its
// own store is, or one that it reads through, in its volume's history or below.
func (v *view) lostSnapshot(l *layer) bool {
	o := v.volumes[l.of]
	return slices.ContainsFunc(o.path(l), func(x *layer) bool { return x.lost }) || v.lostOrigin(o)
}

// kept tells whether the writers that fill s must rather wait than have it lost.
func (p *Pool) kept(v *view, s *store) bool { return s.fork || p.keep(v, s.of) }
