package catalog

import (
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

const foldMost = 1 << 28 // most chunks of a volume: a set of them takes 32 MiB of memory, and a fold has about four sets

// FoldPair is a layer that nobody needs for itself, and its heir, the next older
// layer.
type FoldPair struct{ Volume, Heir, Gone lvm2.ID }

// FoldPairs returns the layers that can be folded away, each with its heir, oldest
// first.
func (v *View) FoldPairs() []FoldPair {
	var out []FoldPair
	for _, o := range v.Volumes.All() {
		needed := v.Needed(o)
		for _, gone := range needed {
			if gone.Named {
				continue
			}
			if heir := o.Reader(needed, gone); heir != nil && v.Foldable(o, heir, gone) {
				out = append(out, FoldPair{o.LV.ID, heir.LV.ID, gone.LV.ID})
			}
		}
	}
	slices.SortFunc(out, func(a, b FoldPair) int {
		return int(int64(v.Layers.Get(a.Gone).Order) - int64(v.Layers.Get(b.Gone).Order))
	})
	return out
}

// Foldable reports whether gone can be folded into heir, the layer of o that reads
// through it. Both must be frozen: a live layer can be folded after the next cut.
func (v *View) Foldable(o *Volume, heir, gone *Layer) bool {
	return v.Unclear == nil && !gone.Named && !v.Pinned.Has(gone.LV.ID) && !v.Flattened.Get(gone.LV.ID) && !v.Flattened.Get(heir.LV.ID) && !heir.Lost && !gone.Lost && o.Theirs() == "" &&
		Linear(heir.LV) && Linear(gone.LV) && heir.Snap == nil && gone.Snap == nil && o.Live() != nil && heir.Length/heir.Chunk <= foldMost
}
