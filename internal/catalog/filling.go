package catalog

import (
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Store is a COW store that the kernel may fill: the store of a layer, or of a
// fork.
type Store struct {
	LV     *lvm2.LV
	Of     *Volume      // writes to this volume fill the store
	Chunk  size.Sectors // unit of copying
	Length size.Sectors // length of the part that can change
	Fork   bool         // the store holds the writes to a fork, so it must not be lost
}

// StoreOf returns the store with that logical volume's id; nil if the id is not a
// store's.
func (v *View) StoreOf(id lvm2.ID) *Store {
	if l := v.Layers.Get(id); l != nil && !l.Trimmed {
		return l.Store(v.Volumes.Get(l.Of))
	}
	if f := v.forks.Get(id); f != nil {
		return v.ForkStore(v.Volumes.Get(f.of))
	}
	return nil
}

// Store returns the store of l, a layer of o.
func (l *Layer) Store(o *Volume) *Store {
	return &Store{LV: l.LV, Of: o, Chunk: l.Chunk, Length: l.Length}
}

// ForkStore returns the store that holds the writes to a fork; nil if o is not a
// fork, or if its store or the content that it reads through is gone.
func (v *View) ForkStore(o *Volume) *Store {
	if !o.Forked() {
		return nil
	}
	l, _, err := v.Origin(o)
	if err != nil || v.LostOrigin(o) {
		return nil
	}
	return &Store{LV: o.Fork.LV, Of: o, Chunk: o.Fork.Chunk, Length: l.Length, Fork: true}
}

// Largest returns the size beyond which the store would be useless.
func (v *View) Largest(s *Store) lvm2.Extents {
	return v.Extents(cow.LargestUseful(s.Length.Bytes(), s.Chunk.Bytes()))
}

// ReadThrough reports whether a fork reads through o's history. Then o's live layer
// must not be lost, or I/O to the fork would fail.
func (v *View) ReadThrough(o *Volume) bool {
	for _, x := range v.Volumes.All() {
		if l := v.Layers.Get(x.CopyOf); l != nil && l.Of == o.LV.ID && x.Fork != nil && !v.LostOrigin(x) {
			return true
		}
	}
	return false
}

// LostOrigin reports whether the metadata records the loss of a layer that a fork
// reads through, directly or not.
func (v *View) LostOrigin(o *Volume) bool {
	for o.Forked() {
		l := v.Layers.Get(o.CopyOf)
		if l == nil || o.Fork == nil {
			return true
		}
		o = v.Volumes.Get(l.Of)
		if slices.ContainsFunc(o.Path(l), func(x *Layer) bool { return x.Lost }) {
			return true
		}
	}
	return false
}

// LostSnapshot reports whether the metadata records the loss of a layer's content:
// the loss of its own store, or of a layer that it reads through, in its volume's
// history or below.
func (v *View) LostSnapshot(l *Layer) bool {
	o := v.Volumes.Get(l.Of)
	return slices.ContainsFunc(o.Path(l), func(x *Layer) bool { return x.Lost }) || v.LostOrigin(o)
}

// OthersGrow reports whether stores of volumes other than o may have to grow.
func (v *View) OthersGrow(o *Volume) bool {
	for _, x := range v.Volumes.All() {
		l := x.Live()
		if x != o && l != nil && !l.Lost && l.LV.Size() < v.Largest(l.Store(x)) || x.Fork != nil {
			return true
		}
	}
	return false
}
