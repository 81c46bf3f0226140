package pool

import "slices"

// live returns the layer into which the kernel copies originals, or nil.
func (v *volume) live() *layer {
	if n := len(v.layers); n > 0 && v.layers[n-1].snap != nil {
		return v.layers[n-1]
	}
	return nil
}

// next returns the layer that l reads through: the next newer one. Only those of
// several that collected side by side, as LVM2's snapshots do, have a common one.
// It is nil for the newest, and where the next one is missing.
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

// above returns the index of what layer i reads through, or -1.
func (v *volume) above(i int) int {
	at := max(v.layers[i].through+1, v.layers[i].over)
	for k := i + 1; k < len(v.layers) && v.layers[k].order <= at; k++ {
		if at <= v.layers[k].through {
			return k
		}
	}
	return -1
}

// path returns l and the layers that it reads through, up to the live one or
// to where one is missing.
func (v *volume) path(l *layer) []*layer {
	out := []*layer{l}
	for i := v.index(l); i >= 0; {
		if i = v.above(i); i >= 0 {
			out = append(out, v.layers[i])
		}
	}
	return out
}

// nextOrder returns the place of a layer that becomes the newest. None that is lost
// may find there what it read through.
func (v *volume) nextOrder() uint64 {
	order := uint64(1)
	for _, l := range v.layers {
		order = max(order, l.through+1, l.over+1)
	}
	if len(v.layers) > 0 && v.live() == nil {
		order++ // the gap says that the newest was removed and the older ones are lost
	}
	return order
}

// findLoss marks the layers that read through one that LVM2's lvremove took out
// of the history: the newest is live, and each begins where the next older one
// ends, unless that happened.
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

// needed returns the layers of o that must stay, oldest first: named ones, ones
// that a copy reads, and what these read through. While a tag in the group is not
// understood that may be any.
func (v *view) needed(o *volume) []*layer {
	twice := false // a place in the history
	for i := 1; i < len(o.layers); i++ {
		twice = twice || o.layers[i].order == o.layers[i-1].order
	}
	if v.unclear != nil || twice { // which of two is the older one nobody knows
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
		// Where one is missing nothing is thrown away because of that.
		if i+1 < len(o.layers) && next == nil {
			need[o.layers[i+1]] = true
		}
	}
	return out
}

// disposable says whether nothing needs o's blocks once o is deleted.
func (v *view) disposable(o *volume) bool { return v.unclear == nil && len(v.needed(o)) == 0 }

// unneeded returns the other layers of o.
func (v *view) unneeded(o *volume) []*layer {
	needed := v.needed(o)
	if len(needed) == len(o.layers) {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(o.layers), func(l *layer) bool { return slices.Contains(needed, l) })
}

// reader returns the one layer of those given that reads through l; nil if there
// are none or several.
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
