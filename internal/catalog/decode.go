package catalog

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// decode decodes the tags of lv into a *Volume, a *Layer, a *ForkStore, a *Flat, trashed,
// foreign or an error.
func decode(lv *lvm2.LV) any {
	p, odd, err := readProperties(lv.Tags)
	if err != nil {
		return err
	}
	if _, static := p[tagStatic]; len(p) == 0 || static && len(p) == 1 {
		return foreign{static: static}
	}
	r := tagReader{p: p}
	switch role := p[tagRole]; role {
	case roleTrash:
		if odd != nil {
			return odd
		}
		return trashed{}
	case roleVolume:
		v := r.volume()
		if v.LV, v.Odd = lv, odd; r.err != nil {
			return r.err
		}
		return v
	case roleLayer:
		l := r.layer()
		if l.LV, l.odd = lv, odd; r.err != nil {
			return r.err
		}
		return l
	case roleFork:
		f := &ForkStore{LV: lv, odd: odd, of: r.id(tagOf, true), Chunk: size.Sectors(r.number(tagChunk))}
		if r.err != nil {
			return r.err
		}
		return f
	case roleFlat:
		return decodeFlat(lv, odd, &r)
	default:
		return fmt.Errorf("tag %s: unknown role %q", Tag(tagRole), role)
	}
}

// volume reads the tags of a volume.
func (r *tagReader) volume() *Volume {
	v := &Volume{
		Name: r.p[tagName], Mode: Mode(r.p[tagMode]), FS: r.p[tagFS],
		Formatted: !r.has(tagUnformatted), ReadOnly: r.has(tagReadOnly), Shared: r.has(tagShared), Raw: r.has(tagRaw), Deleted: r.has(tagDeleted), asked: r.asked(),
		CopyOf: r.id(tagCopy, false), Unknown: r.unknown(), headKept: r.headKept(), Former: r.p[tagFormer],
		Reads: r.id(tagReads, false), Transient: r.has(tagTransient), Begun: r.has(tagBegun), Reset: r.has(tagReset),
		LentTo: r.p[tagLent], Copying: r.copying(),
	}
	if v.Transient {
		v.Chunk = size.Sectors(r.number(tagChunk))
	}
	if r.has(tagHydrated) {
		var err error
		if v.Hydrated, err = ParseHydrated(r.p[tagHydrated]); err != nil {
			r.fail(tagHydrated)
		}
	}
	if kind, from, ok := strings.Cut(r.p[tagSource], "/"); ok {
		v.Source.Kind = SourceKind(kind)
		v.Source.LV, v.SourcePool, _ = strings.Cut(from, "/")
	}
	if v.Mode != Filesystem && v.Mode != Block {
		r.fail(tagMode)
	}
	return v
}

// layer reads the tags of a layer.
func (r *tagReader) layer() *Layer {
	l := &Layer{
		Of: r.id(tagOf, true), Name: r.p[tagName], Named: r.has(tagName), Order: r.number(tagOrder),
		Created: time.Unix(0, int64(r.number(tagCreated))), Length: size.Sectors(r.number(tagLength)),
		Chunk: size.Sectors(r.number(tagChunk)), Lost: r.has(tagLost), Superset: r.has(tagSuperset),
		Blank: r.has(tagUnformatted), unknown: r.unknown(), headKept: r.headKept(), Asked: r.asked(),
	}
	if l.Through = l.Order; r.has(tagThrough) {
		l.Through = r.number(tagThrough)
	}
	if r.has(tagOver) {
		l.over = r.number(tagOver)
	}
	if l.Exact = r.has(tagExact); r.p[tagExact] != "" {
		l.Bound = size.Sectors(r.number(tagExact))
	}
	if l.Trimmed = r.has(tagUsed); l.Trimmed {
		l.Used = size.Sectors(r.number(tagUsed))
	}
	return l
}

// tagReader reads the values of tags and keeps the first error.
type tagReader struct {
	p   properties
	err error
}

func (r *tagReader) fail(key string) {
	if r.err == nil {
		r.err = fmt.Errorf("tag %s: bad value %q", Tag(key), r.p[key])
	}
}

func (r *tagReader) has(key string) bool { _, ok := r.p[key]; return ok }

func (r *tagReader) number(key string) uint64 {
	n, err := strconv.ParseUint(r.p[key], 10, 63)
	if err != nil {
		r.fail(key)
	}
	return n
}

func (r *tagReader) id(key string, required bool) lvm2.ID {
	if !required && !r.has(key) {
		return ""
	}
	id, err := lvm2.ParseID(r.p[key])
	if err != nil {
		r.fail(key)
	}
	return id
}

// asked reads the size in the request; 0 if it is not recorded.
func (r *tagReader) asked() size.Bytes {
	if !r.has(tagAsked) {
		return 0
	}
	return size.Bytes(r.number(tagAsked))
}

// unknown reads the extents of unknown content.
func (r *tagReader) unknown() RangeSet {
	s, err := parseRangeSet(strings.TrimPrefix(r.p[tagUnknown], headTaken))
	if err != nil {
		r.fail(tagUnknown)
	}
	return s
}

// copying reads the progress of a copy from another pool; nil if there is none.
func (r *tagReader) copying() *CopyState {
	if !r.has(tagCopying) {
		return nil
	}
	loan, done, _ := strings.Cut(r.p[tagCopying], "/")
	id, err1 := lvm2.ParseID(loan)
	n, err2 := strconv.ParseUint(done, 10, 63)
	if err1 != nil || err2 != nil {
		r.fail(tagCopying)
	}
	return &CopyState{Loan: id, Done: size.Sectors(n)}
}

// headKept reports whether an older release wrote the tag of unknown; see zeroedHead.
func (r *tagReader) headKept() bool {
	return r.has(tagUnknown) && !strings.HasPrefix(r.p[tagUnknown], headTaken)
}
