package pool

import "github.com/csi-dmsnap/csi-dmsnap/pkg/cow"

// checkReader checks a volume that shows a snapshot.
func (r *checks) checkReader(v *view, o *volume) {
	at := r.at(o.lv)
	l, _, err := v.readFrom(o)
	switch length := v.bytesOf(o.lv).Sectors(); {
	case err != nil:
		r.add("CopySourceMissing", at, "delete the volume and restore it again", "the layer %s that it shows is gone", o.reads)
	case l.length != length:
		r.add("BadTags", at, restoreGroup, "it has %d sectors, but the snapshot that it shows has %d", length, l.length)
	}
	if o.transient && (o.chunk.Bytes() < cow.MinChunk || o.chunk&(o.chunk-1) != 0) {
		r.add("BadTags", at, restoreGroup, "tag %s has an invalid chunk size of %d sectors", tag(tagChunk), o.chunk)
	}
	if !o.transient && !readOnlyLV(o.lv) {
		r.add("Unprotected", at, "lvchange -pr "+at, "it is writable, but must be read-only")
	}
}
