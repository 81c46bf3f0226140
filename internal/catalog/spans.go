package catalog

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Span is a range of sectors of a volume.
type Span struct{ Start, Length size.Sectors }

// End returns the first sector after the span.
func (s Span) End() size.Sectors { return s.Start + s.Length }

// Holds reports whether x lies within s.
func (s Span) Holds(x Span) bool { return s.Start <= x.Start && x.End() <= s.End() }

// Spans is a set of sectors of a volume: sorted, not overlapping, not touching.
type Spans []Span

// Without returns the sectors of s that are not in x.
func (s Spans) Without(x Span) Spans {
	var out Spans
	for _, part := range s {
		if head := (Span{part.Start, min(part.End(), x.Start) - min(part.Start, x.Start)}); head.Length > 0 {
			out = append(out, head)
		}
		if from := max(part.Start, x.End()); from < part.End() {
			out = append(out, Span{from, part.End() - from})
		}
	}
	return out
}

// Contains reports whether x lies within one span of s.
func (s Spans) Contains(x Span) bool {
	return slices.ContainsFunc(s, func(part Span) bool { return part.Holds(x) })
}

// Size returns the number of sectors in all spans.
func (s Spans) Size() (n size.Sectors) {
	for _, part := range s {
		n += part.Length
	}
	return n
}

// ExtentsOf returns the logical extents that cover s.
func (v *View) ExtentsOf(s Span) RangeSet {
	first := lvm2.Extents(s.Start / v.VG.ExtentSize)
	return RangeSet{{Start: first, Count: v.Extents(s.End().Bytes()) - first}}
}

// Hydrated is the progress of a fork's hydration: the part of its content that is in its own
// extents. The zero value stands for no progress.
type Hydrated struct {
	To   size.Sectors // hydrated up to this sector,
	Left Spans        // except for these spans, which could not be copied
}

// MostLeft is the largest number of spans in Hydrated.Left, limited by the size of the tag.
const MostLeft = 16

// Missing returns the spans of a fork that are not hydrated. length is the length of its
// source.
func (h Hydrated) Missing(length size.Sectors) Spans {
	out := slices.Clone(h.Left)
	if h.To >= length {
		return out
	}
	rest := Span{h.To, length - h.To}
	if n := len(out); n > 0 && out[n-1].End() == rest.Start {
		out[n-1].Length += rest.Length
		return out
	}
	return append(out, rest)
}

// HydratedBut is the inverse of Missing.
func HydratedBut(missing Spans, length size.Sectors) Hydrated {
	if n := len(missing); n > 0 && missing[n-1].End() == length {
		return Hydrated{missing[n-1].Start, missing[:n-1]}
	}
	return Hydrated{length, missing}
}

// Has reports whether all of x is hydrated.
func (h Hydrated) Has(x Span) bool {
	return x.End() <= h.To && !slices.ContainsFunc(h.Left, func(l Span) bool { return l.Start < x.End() && x.Start < l.End() })
}

// String formats h as "TO" or, if spans are left, "TO/START+LENGTH/…", in sectors.
func (h Hydrated) String() string {
	var b strings.Builder
	fmt.Fprint(&b, uint64(h.To))
	for _, l := range h.Left {
		fmt.Fprintf(&b, "/%d+%d", uint64(l.Start), uint64(l.Length))
	}
	return b.String()
}

// ParseHydrated is the inverse of String.
func ParseHydrated(text string) (h Hydrated, err error) {
	number := func(s string) size.Sectors {
		n, bad := strconv.ParseUint(s, 10, 62)
		if bad != nil {
			err = bad
		}
		return size.Sectors(n)
	}
	parts := strings.Split(text, "/")
	h.To = number(parts[0])
	before := Span{}
	for _, part := range parts[1:] {
		start, length, _ := strings.Cut(part, "+")
		l := Span{number(start), number(length)}
		if err == nil && (l.Length == 0 || l.End() > h.To || len(h.Left) > 0 && l.Start <= before.End()) {
			err = fmt.Errorf("%q is not a list of parts, in order, before %d", text, h.To)
		}
		h.Left, before = append(h.Left, l), l
	}
	if err != nil {
		return Hydrated{}, err
	}
	return h, nil
}
