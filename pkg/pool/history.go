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
	for i, x := range v.layers {
		if x.lv.ID == l.lv.ID {
			return v.nextOf(i)
		}
	}
	return nil
}

func (v *volume) nextOf(i int) *layer {
	at := max(v.layers[i].through+1, v.layers[i].over)
	for _, x := range v.layers[i+1:] {
		if x.order <= at && at <= x.through {
			return x
		}
	}
	return nil
}

// path returns l and the layers that it reads through, up to the live one or
// to where one is missing.
func (v *volume) path(l *layer) []*layer {
	var out []*layer
	for x := l; x != nil; x = v.next(x) {
		out = append(out, x)
	}
	return out
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
// that a copy reads, and what these read through.
func (v *view) needed(o *volume) []*layer {
	var out []*layer
	need := map[*layer]bool{}
	for i, l := range o.layers {
		if !l.named && !v.pinned[l.lv.ID] && !need[l] {
			continue
		}
		out = append(out, l)
		next := o.nextOf(i)
		need[next] = true
		// Where one is missing, or tags were tampered with, nothing is thrown away because of that.
		if i+1 < len(o.layers) && (next == nil || o.layers[i+1].order == l.order) {
			need[o.layers[i+1]] = true
		}
	}
	return out
}

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
	for _, x := range of {
		if x == l || v.next(x) != l {
			continue
		}
		if only != nil {
			return nil
		}
		only = x
	}
	return only
}
