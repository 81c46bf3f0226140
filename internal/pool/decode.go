package pool

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// decode decodes the tags of lv into a *volume, a *layer, a *fork, a *flat, trashed, foreign
// or an error.
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
		if v.lv, v.odd = lv, odd; r.err != nil {
			return r.err
		}
		return v
	case roleLayer:
		l := r.layer()
		if l.lv, l.odd = lv, odd; r.err != nil {
			return r.err
		}
		return l
	case roleFork:
		f := &fork{lv: lv, odd: odd, of: r.id(tagOf, true), chunk: size.Sectors(r.number(tagChunk))}
		if r.err != nil {
			return r.err
		}
		return f
	case roleFlat:
		return decodeFlat(lv, odd, &r)
	default:
		return fmt.Errorf("tag %s: unknown role %q", tag(tagRole), role)
	}
}

// volume reads the tags of a volume.
func (r *tagReader) volume() *volume {
	v := &volume{
		name: r.p[tagName], mode: Mode(r.p[tagMode]), fs: r.p[tagFS],
		formatted: !r.has(tagUnformatted), readOnly: r.has(tagReadOnly), shared: r.has(tagShared), raw: r.has(tagRaw), deleted: r.has(tagDeleted), asked: r.asked(),
		copyOf: r.id(tagCopy, false), unknown: r.unknown(), headKept: r.headKept(), former: r.p[tagFormer],
		reads: r.id(tagReads, false), transient: r.has(tagTransient), begun: r.has(tagBegun), reset: r.has(tagReset),
		lentTo: r.p[tagLent], copying: r.copying(),
	}
	if v.transient {
		v.chunk = size.Sectors(r.number(tagChunk))
	}
	if r.has(tagHydrated) {
		var err error
		if v.hydrated, err = parseHydrated(r.p[tagHydrated]); err != nil {
			r.fail(tagHydrated)
		}
	}
	if kind, from, ok := strings.Cut(r.p[tagSource], "/"); ok {
		v.source.Kind = SourceKind(kind)
		v.source.LV, v.sourcePool, _ = strings.Cut(from, "/")
	}
	if v.mode != Filesystem && v.mode != Block {
		r.fail(tagMode)
	}
	return v
}

// layer reads the tags of a layer.
func (r *tagReader) layer() *layer {
	l := &layer{
		of: r.id(tagOf, true), name: r.p[tagName], named: r.has(tagName), order: r.number(tagOrder),
		created: time.Unix(0, int64(r.number(tagCreated))), length: size.Sectors(r.number(tagLength)),
		chunk: size.Sectors(r.number(tagChunk)), lost: r.has(tagLost), superset: r.has(tagSuperset),
		blank: r.has(tagUnformatted), unknown: r.unknown(), headKept: r.headKept(), asked: r.asked(),
	}
	if l.through = l.order; r.has(tagThrough) {
		l.through = r.number(tagThrough)
	}
	if r.has(tagOver) {
		l.over = r.number(tagOver)
	}
	if l.exact = r.has(tagExact); r.p[tagExact] != "" {
		l.bound = size.Sectors(r.number(tagExact))
	}
	if l.trimmed = r.has(tagUsed); l.trimmed {
		l.used = size.Sectors(r.number(tagUsed))
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
		r.err = fmt.Errorf("tag %s: bad value %q", tag(key), r.p[key])
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
func (r *tagReader) unknown() rangeSet {
	s, err := parseRangeSet(strings.TrimPrefix(r.p[tagUnknown], headTaken))
	if err != nil {
		r.fail(tagUnknown)
	}
	return s
}

// copying reads the progress of a copy from another pool; nil if there is none.
func (r *tagReader) copying() *copyState {
	if !r.has(tagCopying) {
		return nil
	}
	loan, done, _ := strings.Cut(r.p[tagCopying], "/")
	id, err1 := lvm2.ParseID(loan)
	n, err2 := strconv.ParseUint(done, 10, 63)
	if err1 != nil || err2 != nil {
		r.fail(tagCopying)
	}
	return &copyState{loan: id, done: size.Sectors(n)}
}

// headKept reports whether an older release wrote the tag of unknown; see zeroedHead.
func (r *tagReader) headKept() bool {
	return r.has(tagUnknown) && !strings.HasPrefix(r.p[tagUnknown], headTaken)
}
