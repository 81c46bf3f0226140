package catalog

import "slices"

// Live returns the layer into which the kernel copies originals; nil if there is none.
func (v *Volume) Live() *Layer {
	if n := len(v.Layers); n > 0 && v.Layers[n-1].Snap != nil {
		return v.Layers[n-1]
	}
	return nil
}

// next returns the layer that l reads through: the next newer layer. Layers that LVM2 filled
// side by side, before they were adopted, may have a common next layer. next returns nil for
// the newest layer, and if the next layer is missing.
func (v *Volume) next(l *Layer) *Layer {
	if i := v.index(l); i >= 0 {
		return v.NextOf(i)
	}
	return nil
}

func (v *Volume) index(l *Layer) int {
	return slices.IndexFunc(v.Layers, func(x *Layer) bool { return x.LV.ID == l.LV.ID })
}

// NextOf returns the layer that layer i reads through; nil if there is none.
func (v *Volume) NextOf(i int) *Layer {
	if k := v.above(i); k >= 0 {
		return v.Layers[k]
	}
	return nil
}

// above returns the index of the layer that layer i reads through; -1 if there is none.
func (v *Volume) above(i int) int {
	at := max(v.Layers[i].Through+1, v.Layers[i].over)
	for k := i + 1; k < len(v.Layers) && v.Layers[k].Order <= at; k++ {
		if at <= v.Layers[k].Through {
			return k
		}
	}
	return -1
}

// Path returns l and the layers that it reads through, up to the live layer or a missing one.
func (v *Volume) Path(l *Layer) []*Layer {
	out := []*Layer{l}
	for i := v.index(l); i >= 0; {
		if i = v.above(i); i >= 0 {
			out = append(out, v.Layers[i])
		}
	}
	return out
}

// NextOrder returns the place of the next layer. A lost layer must not find the new layer at
// the place that it used to read through.
func (v *Volume) NextOrder() uint64 {
	order := uint64(1)
	for _, l := range v.Layers {
		order = max(order, l.Through+1, l.over+1)
	}
	if len(v.Layers) > 0 && v.Live() == nil {
		order++ // the gap shows that the newest layer was removed and the older ones are lost
	}
	return order
}

// findLoss marks the layers that read through a layer removed with lvremove. In a complete
// history the newest layer is live, and each layer begins where the next older one ends.
func (v *Volume) findLoss() {
	live, whole := v.Live(), map[*Layer]bool{}
	for i, l := range slices.Backward(v.Layers) {
		if next := v.NextOf(i); l == live || next != nil && whole[next] {
			whole[l] = true
		} else {
			l.Lost = true
		}
	}
}

// Needed returns the layers of o that must stay, oldest first: layers with a name, layers
// that a fork or a reader reads, and the layers that these read through. While a tag in the
// group is not understood, every layer is needed.
func (v *View) Needed(o *Volume) []*Layer {
	if v.Unclear != nil || o.unordered() {
		return slices.Clone(o.Layers)
	}
	var out []*Layer
	need := map[*Layer]bool{}
	for i, l := range o.Layers {
		if !l.Named && !v.Pinned.Has(l.LV.ID) && !need[l] {
			continue
		}
		out = append(out, l)
		next := o.NextOf(i)
		need[next] = true
		// If the next layer is missing, keep the layer after it.
		if i+1 < len(o.Layers) && next == nil {
			need[o.Layers[i+1]] = true
		}
	}
	return out
}

// unordered reports whether two layers have the same place, so that the order of the layers
// is not known.
func (v *Volume) unordered() bool {
	for i := 1; i < len(v.Layers); i++ {
		if v.Layers[i].Order == v.Layers[i-1].Order {
			return true
		}
	}
	return false
}

// Disposable reports whether the blocks of o can go when o is deleted.
func (v *View) Disposable(o *Volume) bool { return v.Unclear == nil && len(v.Needed(o)) == 0 }

// unneeded returns the layers of o that may be deleted.
func (v *View) unneeded(o *Volume) []*Layer {
	needed := v.Needed(o)
	if len(needed) == len(o.Layers) {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(o.Layers), func(l *Layer) bool { return slices.Contains(needed, l) })
}

// Reader returns the layer in of that reads through l; nil if there is none or more than one.
func (v *Volume) Reader(of []*Layer, l *Layer) (only *Layer) {
	for i, x := range v.Layers {
		if v.NextOf(i) != l || !slices.Contains(of, x) {
			continue
		}
		if only != nil {
			return nil
		}
		only = x
	}
	return only
}

// Inexact reports whether the boundary of a frozen layer is still unknown and of use.
func (l *Layer) Inexact() bool { return l.Snap == nil && !l.Exact && !l.Lost && !l.Superset }
