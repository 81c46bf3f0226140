package pool

import "github.com/csi-dmsnap/csi-dmsnap/pkg/cow"

// checkFork checks a fork's tags and store.
func (r *checks) checkFork(v *view, o *volume) {
	if !o.forked() {
		return
	}
	at := r.at(o.lv)
	l := v.layers[o.copyOf]
	if l == nil {
		r.add("CopySourceMissing", at, "delete the volume and restore it again", "the layer %s that it reads through is gone", o.copyOf)
		return
	}
	if h := o.hydrated; h.to > l.length || len(h.missing(l.length)) == 0 {
		r.add("BadTags", at, restoreGroup, "tag %s says %v sectors, but the snapshot that it reads through has %d", tag(tagHydrated), o.hydrated, l.length)
	}
	if o.fork == nil {
		r.add("ForkStoreMissing", at, "delete the volume and restore it again", "the store that holds its writes is gone")
		return
	}
	store := r.at(o.fork.lv)
	if !untouchable(o.fork.lv) {
		r.add("Unprotected", store, protect(store), "LVM2 may activate or change the store of a volume that is not hydrated")
	}
	if err := cow.CheckChunk(o.fork.chunk.Bytes()); err != nil {
		r.add("BadTags", store, restoreGroup, "tag %s: %v", tag(tagChunk), err)
	}
}
