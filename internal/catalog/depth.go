package catalog

// Depth returns the number of devices by which layer l of o is read, including its own. If o
// is a fork, it also counts the devices that o reads through.
func (v *View) Depth(o *Volume, l *Layer) int {
	n := len(v.Route(o, l))
	if below := v.Layers.Get(o.CopyOf); below != nil {
		n += 1 + v.Depth(v.Volumes.Get(below.Of), below)
	}
	return n
}

// ReadsUnasked reports whether x may read through l at any time without a flat store. This
// holds for a fork if l has no flat store. Room reserved for a flat store does not count.
func (v *View) ReadsUnasked(x *Volume, l *Layer) bool {
	if !x.Forked() || l.Lost {
		return false
	}
	f, _ := v.FlatOf(v.Volumes.Get(l.Of), l)
	return f == nil
}

// ReadsThrough reports whether x reads through o's history.
func (v *View) ReadsThrough(x, o *Volume) bool {
	for x.From() != "" {
		l := v.Layers.Get(x.From())
		if l == nil {
			return false
		}
		if x = v.Volumes.Get(l.Of); x == o {
			return true
		}
	}
	return false
}
