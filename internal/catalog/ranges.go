package catalog

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// RangeSet is a set of physical extents: sorted, not overlapping, not touching.
type RangeSet []lvm2.Range

func compareRanges(a, b lvm2.Range) int {
	if a.PV != b.PV {
		return a.PV - b.PV
	}
	if a.Start < b.Start {
		return -1
	}
	if a.Start > b.Start {
		return 1
	}
	return 0
}

// NewRangeSet returns the set of all extents in ranges, which may be in any order and overlap.
func NewRangeSet(ranges ...lvm2.Range) RangeSet {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, compareRanges)
	var out RangeSet
	for _, r := range sorted {
		if r.Count == 0 {
			continue
		}
		if n := len(out); n > 0 && out[n-1].PV == r.PV && r.Start <= out[n-1].Start+out[n-1].Count {
			out[n-1].Count = max(out[n-1].Start+out[n-1].Count, r.Start+r.Count) - out[n-1].Start
			continue
		}
		out = append(out, r)
	}
	return out
}

// Size returns the number of extents in the set.
func (s RangeSet) Size() lvm2.Extents {
	var n lvm2.Extents
	for _, r := range s {
		n += r.Count
	}
	return n
}

// Union returns the extents that are in either set.
func (s RangeSet) Union(t RangeSet) RangeSet {
	if len(t) == 0 {
		return slices.Clip(s)
	}
	lo, hi := s.near(t)
	return s.with(lo, hi, NewRangeSet(append(slices.Clone(s[lo:hi]), t...)...))
}

// near returns the indices of the ranges of s that overlap or touch t, or lie between its first
// and last range. So an operation with a few ranges does not look at all of a large set.
func (s RangeSet) near(t RangeSet) (lo, hi int) {
	first, last := t[0], t[len(t)-1]
	lo = sort.Search(len(s), func(i int) bool {
		return s[i].PV > first.PV || s[i].PV == first.PV && s[i].Start+s[i].Count >= first.Start
	})
	hi = sort.Search(len(s), func(i int) bool {
		return s[i].PV > last.PV || s[i].PV == last.PV && s[i].Start > last.Start+last.Count
	})
	return lo, max(lo, hi)
}

// with returns s with the ranges from lo to hi replaced.
func (s RangeSet) with(lo, hi int, by RangeSet) RangeSet {
	return slices.Concat(s[:lo], by, s[hi:])
}

// Intersect returns the extents that are in both sets.
func (s RangeSet) Intersect(t RangeSet) RangeSet {
	var out RangeSet
	for i, j := 0, 0; i < len(s) && j < len(t); {
		a, b := s[i], t[j]
		if a.PV == b.PV {
			lo, hi := max(a.Start, b.Start), min(a.Start+a.Count, b.Start+b.Count)
			if lo < hi {
				out = append(out, lvm2.Range{PV: a.PV, Start: lo, Count: hi - lo})
			}
		}
		if a.PV < b.PV || a.PV == b.PV && a.Start+a.Count < b.Start+b.Count {
			i++
		} else {
			j++
		}
	}
	return out
}

// Subtract returns the extents of s that are not in t.
func (s RangeSet) Subtract(t RangeSet) RangeSet {
	if len(t) == 0 {
		return slices.Clip(s)
	}
	lo, hi := s.near(t)
	return s.with(lo, hi, s[lo:hi].subtract(t))
}

func (s RangeSet) subtract(t RangeSet) RangeSet {
	var out RangeSet
	j := 0
	for _, r := range s {
		for j < len(t) && (t[j].PV < r.PV || t[j].PV == r.PV && t[j].Start+t[j].Count <= r.Start) {
			j++
		}
		for k := j; k < len(t) && t[k].PV == r.PV && t[k].Start < r.Start+r.Count; k++ {
			if t[k].Start > r.Start {
				out = append(out, lvm2.Range{PV: r.PV, Start: r.Start, Count: t[k].Start - r.Start})
			}
			end := min(t[k].Start+t[k].Count, r.Start+r.Count)
			r.Count -= end - r.Start
			r.Start = end
		}
		if r.Count > 0 {
			out = append(out, r)
		}
	}
	return out
}

// coarser returns a set that covers s in fewer pieces: it fills the smaller half of the gaps.
func (s RangeSet) coarser() RangeSet {
	var gaps []lvm2.Extents
	for i := 1; i < len(s); i++ {
		if s[i].PV == s[i-1].PV {
			gaps = append(gaps, s[i].Start-s[i-1].Start-s[i-1].Count)
		}
	}
	if len(gaps) == 0 {
		return s
	}
	slices.Sort(gaps)
	limit := gaps[len(gaps)/2]
	out := slices.Clone(s[:1])
	for _, r := range s[1:] {
		last := &out[len(out)-1]
		if r.PV == last.PV && r.Start-last.Start-last.Count <= limit {
			last.Count = r.Start + r.Count - last.Start
		} else {
			out = append(out, r)
		}
	}
	return out
}

// String formats the set as "PV.START+COUNT/…", with START and COUNT in base 36.
func (s RangeSet) String() string {
	parts := make([]string, len(s))
	for i, r := range s {
		parts[i] = strconv.Itoa(r.PV) + "." + strconv.FormatUint(uint64(r.Start), 36) + "+" + strconv.FormatUint(uint64(r.Count), 36)
	}
	return strings.Join(parts, "/")
}

// parseRangeSet is the inverse of String.
func parseRangeSet(text string) (RangeSet, error) {
	if text == "" {
		return nil, nil
	}
	var out []lvm2.Range
	for _, part := range strings.Split(text, "/") {
		pv, rest, ok1 := strings.Cut(part, ".")
		start, count, ok2 := strings.Cut(rest, "+")
		p, err1 := strconv.ParseUint(pv, 10, 16)
		a, err2 := strconv.ParseUint(start, 36, 62)
		n, err3 := strconv.ParseUint(count, 36, 62)
		if !ok1 || !ok2 || err1 != nil || err2 != nil || err3 != nil {
			return nil, fmt.Errorf("extent range %q is not PV.START+COUNT", part)
		}
		out = append(out, lvm2.Range{PV: int(p), Start: lvm2.Extents(a), Count: lvm2.Extents(n)})
	}
	return NewRangeSet(out...), nil
}
