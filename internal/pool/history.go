package pool

import "slices"

// live returns the layer into which the kernel copies originals; nil if there is none.
func (v *volume) live() *layer {
	if n := len(v.layers); n > 0 && v.layers[n-1].snap != nil {
		return v.layers[n-1]
	}
	return nil
}

// next returns the layer that l reads through: the next newer layer. Layers that LVM2 filled
// side by side, before they were adopted, may have a common next layer. next returns nil for
// the newest layer, and if the next layer is missing.
func (v *volume) next(l *layer) *layer {
	if i := v.index(l); i >= 0 {
		return v.nextOf(i)
	}
	return nil
}

func (v *volume) index(l *layer) int {
	return slices.IndexFunc(v.layers, func(x *layer) bool { return x.lv.ID == l.lv.ID })
}

func (v *volume) nextOf(i int) *layer {
	if k := v.above(i); k >= 0 {
		return v.layers[k]
	}
	return nil
}

// above returns the index of the layer that layer i reads through; -1 if there is none.
func (v *volume) above(i int) int {
	at := max(v.layers[i].through+1, v.layers[i].over)
	for k := i + 1; k < len(v.layers) && v.layers[k].order <= at; k++ {
		if at <= v.layers[k].through {
			return k
		}
	}
	return -1
}

// path returns l and the layers that it reads through, up to the live layer or a missing one.
func (v *volume) path(l *layer) []*layer {
	out := []*layer{l}
	for i := v.index(l); i >= 0; {
		if i = v.above(i); i >= 0 {
			out = append(out, v.layers[i])
		}
	}
	return out
}

// nextOrder returns the place of the next layer. A lost layer must not find the new layer at
// the place that it used to read through.
func (v *volume) nextOrder() uint64 {
	order := uint64(1)
	for _, l := range v.layers {
		order = max(order, l.through+1, l.over+1)
	}
	if len(v.layers) > 0 && v.live() == nil {
		order++ // the gap shows that the newest layer was removed and the older ones are lost
	}
	return order
}

// findLoss marks the layers that read through a layer removed with lvremove. In a complete
// history the newest layer is live, and each layer begins where the next older one ends.
func (v *volume) findLoss() {
	live, whole := v.live(), map[*layer]bool{}
	for i, l := range slices.Backward(v.layers) {
		if next := v.nextOf(i); l == live || next != nil && whole[next] {
			whole[l] = true
		} else {
			l.lost = true
		}
	}
}

// needed returns the layers of o that must stay, oldest first: layers with a name, layers
// that a fork or a reader reads, and the layers that these read through. While a tag in the
// group is not understood, every layer is needed.
func (v *view) needed(o *volume) []*layer {
	twice := false // two layers have the same place
	for i := 1; i < len(o.layers); i++ {
		twice = twice || o.layers[i].order == o.layers[i-1].order
	}
	if v.unclear != nil || twice { // the order of the layers is not known
		return slices.Clone(o.layers)
	}
	var out []*layer
	need := map[*layer]bool{}
	for i, l := range o.layers {
		if !l.named && !v.pinned[l.lv.ID] && !need[l] {
			continue
		}
		out = append(out, l)
		next := o.nextOf(i)
		need[next] = true
		// If the next layer is missing, keep the layer after it.
		if i+1 < len(o.layers) && next == nil {
			need[o.layers[i+1]] = true
		}
	}
	return out
}

// disposable reports whether the blocks of o can go when o is deleted.
func (v *view) disposable(o *volume) bool { return v.unclear == nil && len(v.needed(o)) == 0 }

// unneeded returns the layers of o that may be deleted.
func (v *view) unneeded(o *volume) []*layer {
	needed := v.needed(o)
	if len(needed) == len(o.layers) {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(o.layers), func(l *layer) bool { return slices.Contains(needed, l) })
}

// reader returns the layer in of that reads through l; nil if there is none or more than one.
func (v *volume) reader(of []*layer, l *layer) (only *layer) {
	for i, x := range v.layers {
		if v.nextOf(i) != l || !slices.Contains(of, x) {
			continue
		}
		if only != nil {
			return nil
		}
		only = x
	}
	return only
}
