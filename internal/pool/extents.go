package pool

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// place chooses where new extents go.
type place int

const (
	lowEnd  place = iota // volumes: from the start of the disks
	highEnd              // COW stores: from the end, so that volumes stay in one piece
)

// allocateOn takes n free extents on disks of that kind: for volumes wiped ones, in one
// piece if there is one; else in one piece, and else wherever there is room. Nobody
// sees what lay where a store is, so stores leave wiped extents to volumes, and the
// large pieces, too.
func (t *edit) allocateOn(block size.Bytes, n lvm2.Extents, at place) ([]lvm2.Range, error) {
	return t.allocateMore(nil, block, n, at)
}

// allocateMore does what allocateOn does, for what goes on after the segments has.
func (t *edit) allocateMore(has []lvm2.Segment, block size.Bytes, n lvm2.Extents, at place) ([]lvm2.Range, error) {
	if err := t.withoutMapped(); err != nil {
		return nil, err
	}
	var most lvm2.Extents
	for _, kind := range t.kindsOf(block) {
		free := t.freeOn(kind)
		most = max(most, free.size())
		if free.size() < n {
			continue
		}
		if at == highEnd {
			return t.take(packed(oneDisk(free, n, has), n)...), nil
		}
		if clean := t.clean.intersect(free); clean.size() >= n {
			free = clean
		}
		if r, ok := onePiece(free, n, at); ok {
			return t.take(r), nil
		}
		return t.take(pieces(free, n, at)...), nil
	}
	return nil, fmt.Errorf("%w: volume group %s has %d free extents of %v%s, but %d are needed%s", ErrNoSpace, t.vg.Name, most, t.extent(), t.onKind(block), n, t.stillMapped())
}

// take marks extents as given out.
func (t *edit) take(ranges ...lvm2.Range) []lvm2.Range {
	t.free = t.free.subtract(newRangeSet(ranges...))
	return ranges
}

// onePiece returns n extents in one piece, the lowest or highest there is.
func onePiece(s rangeSet, n lvm2.Extents, at place) (lvm2.Range, bool) {
	if at == highEnd {
		for _, r := range slices.Backward(s) {
			if r.Count >= n {
				return lvm2.Range{PV: r.PV, Start: r.Start + r.Count - n, Count: n}, true
			}
		}
		return lvm2.Range{}, false
	}
	for _, r := range s {
		if r.Count >= n {
			return lvm2.Range{PV: r.PV, Start: r.Start, Count: n}, true
		}
	}
	return lvm2.Range{}, false
}

// oneDisk returns the part of s on one disk from which a store that has segments already
// takes n extents: a disk that the store is on, its last first; else one that has them in
// one piece; else one that has them, from the last disk on. It is s if no disk has: a
// store is lost with each disk that it is on.
func oneDisk(s rangeSet, n lvm2.Extents, has []lvm2.Segment) rangeSet {
	disks, order := map[int]rangeSet{}, []int(nil)
	for _, r := range s {
		disks[r.PV] = append(disks[r.PV], r)
	}
	for _, segment := range slices.Backward(has) {
		for _, stripe := range segment.Stripes {
			order = append(order, stripe.PV)
		}
	}
	if r, ok := onePiece(s, n, highEnd); ok {
		order = append(order, r.PV)
	}
	for _, r := range slices.Backward(s) {
		order = append(order, r.PV)
	}
	for _, pv := range order {
		if disks[pv].size() >= n {
			return disks[pv]
		}
	}
	return s
}

// smallPieces is how many gaps between stores a new part of a store begins with at most.
const smallPieces = 3

// packed returns n extents of s for a store: of the gaps at the high end first. What a
// frozen store keeps is its beginning, so the gaps that others left are filled, and what
// is given back lies in one piece with what is free.
func packed(s rangeSet, n lvm2.Extents) []lvm2.Range {
	var out []lvm2.Range
	for len(s) > 0 && len(out) < smallPieces && s[len(s)-1].Count < n {
		gap := s[len(s)-1]
		out, s, n = append(out, gap), s[:len(s)-1], n-gap.Count
	}
	if r, ok := onePiece(s, n, highEnd); ok {
		return append(out, r)
	}
	return append(out, pieces(s, n, highEnd)...)
}

// pieces returns n extents of s in as few pieces as can be, and those near one end of it.
func pieces(s rangeSet, n lvm2.Extents, at place) []lvm2.Range {
	all := slices.Clone(s)
	if at == highEnd {
		slices.Reverse(all)
	}
	slices.SortStableFunc(all, func(a, b lvm2.Range) int { return cmp.Compare(b.Count, a.Count) })
	var out []lvm2.Range
	for i := 0; i < len(all) && n > 0; i++ {
		r := all[i]
		k := min(n, r.Count)
		if at == highEnd {
			r.Start += r.Count - k
		}
		r.Count = k
		out = append(out, r)
		n -= k
	}
	slices.SortFunc(out, compareRanges)
	if at == highEnd {
		slices.Reverse(out)
	}
	return out
}

// growth takes n more extents for lv, where its last segment goes on if it can.
func (t *edit) growth(lv *lvm2.LV, n lvm2.Extents, at place) ([]lvm2.Range, error) {
	has, err := physical(lv)
	if err != nil {
		return nil, err
	}
	if err := t.withoutMapped(); err != nil {
		return nil, err
	}
	last := has[len(has)-1]
	end := last.Start + last.Count
	for _, r := range t.free {
		if r.PV == last.PV && r.Start == end && r.Count >= n {
			return t.take(lvm2.Range{PV: r.PV, Start: end, Count: n}), nil
		}
	}
	return t.allocateMore(lv.Segments, t.vg.PVs[last.PV].BlockSize, n, at)
}

// appendExtents adds ranges to the end of segments, joining what is adjacent as LVM2 does.
func appendExtents(segments []lvm2.Segment, ranges ...lvm2.Range) []lvm2.Segment {
	out := slices.Clone(segments)
	var start lvm2.Extents
	for _, s := range out {
		start += s.Count
	}
	for _, r := range ranges {
		if n := len(out); n > 0 && len(out[n-1].Stripes) == 1 &&
			out[n-1].Stripes[0].PV == r.PV && out[n-1].Stripes[0].Start+out[n-1].Count == r.Start {
			out[n-1].Count += r.Count
		} else {
			out = append(out, lvm2.Segment{Start: start, Count: r.Count, Type: lvm2.TypeStriped, Stripes: []lvm2.Stripe{{PV: r.PV, Start: r.Start}}})
		}
		start += r.Count
	}
	return out
}

// physical returns the physical extents of lv in the order of its logical ones;
// ErrPrecondition if LVM2 has made it something else than pieces of physical
// volumes, at least one.
func physical(lv *lvm2.LV) ([]lvm2.Range, error) {
	if !linear(lv) {
		return nil, fmt.Errorf("logical volume %s is not linear: %w: lvm2 is moving it, or has converted it", lv.Name, ErrPrecondition)
	}
	out := make([]lvm2.Range, 0, len(lv.Segments))
	for _, s := range lv.Segments {
		out = append(out, lvm2.Range{PV: s.Stripes[0].PV, Start: s.Stripes[0].Start, Count: s.Count})
	}
	return out, nil
}

// linear says whether every segment of lv is a plain piece of a physical volume.
func linear(lv *lvm2.LV) bool {
	return len(lv.Segments) > 0 && !slices.ContainsFunc(lv.Segments, func(s lvm2.Segment) bool {
		return s.Type != lvm2.TypeStriped || len(s.Stripes) != 1 || s.Stripes[0].PV < 0
	})
}

// sameExtents says whether two logical volumes are the same pieces of the same
// physical volumes. x is of group a, y of b: LVM2 renumbers physical volumes.
func sameExtents(a *lvm2.VG, x *lvm2.LV, b *lvm2.VG, y *lvm2.LV) bool {
	px, err1 := physical(x)
	py, err2 := physical(y)
	return err1 == nil && err2 == nil && slices.EqualFunc(px, py, func(r, s lvm2.Range) bool {
		return a.PVs[r.PV].ID == b.PVs[s.PV].ID && r.Start == s.Start && r.Count == s.Count
	})
}

// logicalOutside returns which logical extents of an LV made of ranges, the
// first of which has number start, do not lie in known.
func logicalOutside(known rangeSet, start lvm2.Extents, ranges []lvm2.Range) rangeSet {
	var out []lvm2.Range
	for _, r := range ranges {
		for _, u := range newRangeSet(r).subtract(known) {
			out = append(out, lvm2.Range{Start: start + u.Start - r.Start, Count: u.Count})
		}
		start += r.Count
	}
	return newRangeSet(out...)
}

// physicalOf maps logical extents of lv to physical ones, in order. It fails as
// physical does.
func physicalOf(lv *lvm2.LV, logical rangeSet) ([]lvm2.Range, error) {
	has, err := physical(lv)
	if err != nil {
		return nil, err
	}
	var out []lvm2.Range
	for _, l := range logical {
		at := lvm2.Extents(0)
		for _, r := range has {
			lo, hi := max(l.Start, at), min(l.Start+l.Count, at+r.Count)
			if lo < hi {
				out = append(out, lvm2.Range{PV: r.PV, Start: r.Start + lo - at, Count: hi - lo})
			}
			at += r.Count
		}
	}
	return out, nil
}

// The group remembers in tags which free extents we wiped. LVM2 may use and
// free extents without telling, but it raises the generation number when it
// does: the tags hold for the generation that they name and for no other.
const (
	maxCleanTag  = 900 // bytes of ranges in one tag
	maxCleanTags = 8
)

func readClean(vg *lvm2.VG) rangeSet {
	var all rangeSet
	for _, t := range vg.Tags {
		rest, ours := strings.CutPrefix(t, tagPrefix+tagClean+"=")
		if !ours {
			continue
		}
		text, err := decodeTag(rest)
		if err != nil {
			return nil
		}
		seqno, ranges, _ := strings.Cut(text, "/")
		n, err := strconv.ParseUint(seqno, 10, 64)
		if err != nil || n != vg.Seqno {
			return nil
		}
		s, err := parseRangeSet(ranges)
		if err != nil {
			return nil
		}
		all = append(all, s...)
	}
	return newRangeSet(all...)
}

// writeClean puts the set into the group's tags for the generation that the
// next commit makes. When it does not fit, the smallest pieces are forgotten.
func writeClean(vg *lvm2.VG, clean rangeSet) {
	tags := dropTags(vg.Tags, tagClean)
	seqno := strconv.FormatUint(vg.Seqno+1, 10)
	bySize := slices.Clone(clean)
	slices.SortStableFunc(bySize, func(a, b lvm2.Range) int { return int(int64(b.Count) - int64(a.Count)) })
	text := ""
	written := 0
	flush := func() {
		if text != "" {
			tags = append(tags, tag(tagClean, seqno+text))
			written++
		}
		text = ""
	}
	for _, r := range bySize {
		if len(text) > maxCleanTag {
			flush()
		}
		if written == maxCleanTags {
			break
		}
		text += "/" + rangeSet{r}.String()
	}
	flush()
	vg.Tags = tags
}
