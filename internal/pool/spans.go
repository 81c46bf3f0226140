package pool

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// span is a range of sectors of a volume.
type span struct{ start, length size.Sectors }

func (s span) end() size.Sectors { return s.start + s.length }

// holds reports whether x lies within s.
func (s span) holds(x span) bool { return s.start <= x.start && x.end() <= s.end() }

// spans is a set of sectors of a volume: sorted, not overlapping, not touching.
type spans []span

// without returns the sectors of s that are not in x.
func (s spans) without(x span) spans {
	var out spans
	for _, part := range s {
		if head := (span{part.start, min(part.end(), x.start) - min(part.start, x.start)}); head.length > 0 {
			out = append(out, head)
		}
		if from := max(part.start, x.end()); from < part.end() {
			out = append(out, span{from, part.end() - from})
		}
	}
	return out
}

// contains reports whether x lies within one span of s.
func (s spans) contains(x span) bool {
	return slices.ContainsFunc(s, func(part span) bool { return part.holds(x) })
}

func (s spans) size() (n size.Sectors) {
	for _, part := range s {
		n += part.length
	}
	return n
}

// extentsOf returns the logical extents that cover s.
func (v *view) extentsOf(s span) rangeSet {
	first := lvm2.Extents(s.start / v.vg.ExtentSize)
	return rangeSet{{Start: first, Count: v.extents(s.end().Bytes()) - first}}
}

// hydrated is the progress of a fork's hydration: the part of its content that is in its own
// extents. The zero value stands for no progress.
type hydrated struct {
	to   size.Sectors // hydrated up to this sector,
	left spans        // except for these spans, which could not be copied
}

// mostLeft is the largest number of spans in left, limited by the size of the tag.
const mostLeft = 16

// missing returns the spans of a fork that are not hydrated. length is the length of its
// source.
func (h hydrated) missing(length size.Sectors) spans {
	out := slices.Clone(h.left)
	if h.to >= length {
		return out
	}
	rest := span{h.to, length - h.to}
	if n := len(out); n > 0 && out[n-1].end() == rest.start {
		out[n-1].length += rest.length
		return out
	}
	return append(out, rest)
}

// hydratedBut is the inverse of missing.
func hydratedBut(missing spans, length size.Sectors) hydrated {
	if n := len(missing); n > 0 && missing[n-1].end() == length {
		return hydrated{missing[n-1].start, missing[:n-1]}
	}
	return hydrated{length, missing}
}

// has reports whether all of x is hydrated.
func (h hydrated) has(x span) bool {
	return x.end() <= h.to && !slices.ContainsFunc(h.left, func(l span) bool { return l.start < x.end() && x.start < l.end() })
}

// String formats h as "TO" or, if spans are left, "TO/START+LENGTH/…", in sectors.
func (h hydrated) String() string {
	var b strings.Builder
	fmt.Fprint(&b, uint64(h.to))
	for _, l := range h.left {
		fmt.Fprintf(&b, "/%d+%d", uint64(l.start), uint64(l.length))
	}
	return b.String()
}

// parseHydrated is the inverse of String.
func parseHydrated(text string) (h hydrated, err error) {
	number := func(s string) size.Sectors {
		n, bad := strconv.ParseUint(s, 10, 62)
		if bad != nil {
			err = bad
		}
		return size.Sectors(n)
	}
	parts := strings.Split(text, "/")
	h.to = number(parts[0])
	before := span{}
	for _, part := range parts[1:] {
		start, length, _ := strings.Cut(part, "+")
		l := span{number(start), number(length)}
		if err == nil && (l.length == 0 || l.end() > h.to || len(h.left) > 0 && l.start <= before.end()) {
			err = fmt.Errorf("%q is not a list of parts, in order, before %d", text, h.to)
		}
		h.left, before = append(h.left, l), l
	}
	if err != nil {
		return hydrated{}, err
	}
	return h, nil
}
