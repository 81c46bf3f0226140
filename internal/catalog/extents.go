package catalog

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Place is the end of the disks at which new extents are allocated.
type Place int

const (
	LowEnd  Place = iota // volumes: from the start of the disks
	HighEnd              // COW stores: from the end, so that volumes stay in one piece
)

// AllocateOn allocates n free extents on disks of a kind; with AnyKind, of any one kind. For
// a volume it takes wiped extents if there are enough, and of these one piece if possible. For
// a store it leaves wiped extents and large pieces to volumes, because nobody can read the
// old bytes below a store.
func (t *Edit) AllocateOn(block size.Bytes, n lvm2.Extents, at Place) ([]lvm2.Range, error) {
	return t.AllocateMore(nil, block, n, at)
}

// AllocateMore is AllocateOn for extents that continue a logical volume with the segments has.
func (t *Edit) AllocateMore(has []lvm2.Segment, block size.Bytes, n lvm2.Extents, at Place) ([]lvm2.Range, error) {
	if err := t.WithoutMapped(); err != nil {
		return nil, err
	}
	var most lvm2.Extents
	for _, kind := range t.KindsOf(block) {
		free := t.FreeOn(kind)
		most = max(most, free.Size())
		if free.Size() < n {
			continue
		}
		if at == HighEnd {
			return t.Take(packed(oneDisk(free, n, has), n)...), nil
		}
		if clean := t.Clean.Intersect(free); clean.Size() >= n {
			free = clean
		}
		if r, ok := OnePiece(free, n, at); ok {
			return t.Take(r), nil
		}
		return t.Take(Pieces(free, n, at)...), nil
	}
	return nil, fmt.Errorf("%w: volume group %s has %d free extents of %v%s, but %d are needed%s", ErrNoSpace, t.VG.Name, most, t.ExtentSize(), t.OnKind(block), n, t.stillMapped())
}

// Take removes ranges from the free extents.
func (t *Edit) Take(ranges ...lvm2.Range) []lvm2.Range {
	t.Free = t.Free.Subtract(NewRangeSet(ranges...))
	return ranges
}

// OnePiece returns the lowest or the highest piece of n extents in s.
func OnePiece(s RangeSet, n lvm2.Extents, at Place) (lvm2.Range, bool) {
	if at == HighEnd {
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

// oneDisk returns the part of s on the disk from which a store with the segments has gets n
// extents. A store is lost if any of its disks is lost, so it should lie on few disks. oneDisk
// prefers a disk of the store, its last one first, then a disk with n extents in one piece,
// then any disk with n extents, from the last disk on. It returns s if no disk has n extents.
func oneDisk(s RangeSet, n lvm2.Extents, has []lvm2.Segment) RangeSet {
	disks, order := map[int]RangeSet{}, []int(nil)
	for _, r := range s {
		disks[r.PV] = append(disks[r.PV], r)
	}
	for _, segment := range slices.Backward(has) {
		for _, stripe := range segment.Stripes {
			order = append(order, stripe.PV)
		}
	}
	if r, ok := OnePiece(s, n, HighEnd); ok {
		order = append(order, r.PV)
	}
	for _, r := range slices.Backward(s) {
		order = append(order, r.PV)
	}
	for _, pv := range order {
		if disks[pv].Size() >= n {
			return disks[pv]
		}
	}
	return s
}

// SmallPieces is the largest number of gaps between stores that packed fills.
const SmallPieces = 3

// packed returns n extents of s for a store, first from the gaps at the high end. A trimmed
// store keeps its beginning, so the beginning fills gaps between other stores, and the end,
// which is freed later, lies next to free extents.
func packed(s RangeSet, n lvm2.Extents) []lvm2.Range {
	var out []lvm2.Range
	for len(s) > 0 && len(out) < SmallPieces && s[len(s)-1].Count < n {
		gap := s[len(s)-1]
		out, s, n = append(out, gap), s[:len(s)-1], n-gap.Count
	}
	if r, ok := OnePiece(s, n, HighEnd); ok {
		return append(out, r)
	}
	return append(out, Pieces(s, n, HighEnd)...)
}

// Pieces returns n extents of s in as few pieces as possible, near one end of s.
func Pieces(s RangeSet, n lvm2.Extents, at Place) []lvm2.Range {
	all := slices.Clone(s)
	if at == HighEnd {
		slices.Reverse(all)
	}
	slices.SortStableFunc(all, func(a, b lvm2.Range) int { return cmp.Compare(b.Count, a.Count) })
	var out []lvm2.Range
	for i := 0; i < len(all) && n > 0; i++ {
		r := all[i]
		k := min(n, r.Count)
		if at == HighEnd {
			r.Start += r.Count - k
		}
		r.Count = k
		out = append(out, r)
		n -= k
	}
	slices.SortFunc(out, compareRanges)
	if at == HighEnd {
		slices.Reverse(out)
	}
	return out
}

// Growth allocates n more extents for lv, directly after its last segment if possible.
func (t *Edit) Growth(lv *lvm2.LV, n lvm2.Extents, at Place) ([]lvm2.Range, error) {
	has, err := Physical(lv)
	if err != nil {
		return nil, err
	}
	if err := t.WithoutMapped(); err != nil {
		return nil, err
	}
	last := has[len(has)-1]
	end := last.Start + last.Count
	for _, r := range t.Free {
		if r.PV == last.PV && r.Start == end && r.Count >= n {
			return t.Take(lvm2.Range{PV: r.PV, Start: end, Count: n}), nil
		}
	}
	return t.AllocateMore(lv.Segments, t.VG.PVs[last.PV].BlockSize, n, at)
}

// AppendExtents appends ranges to segments, and joins adjacent ranges like LVM2.
func AppendExtents(segments []lvm2.Segment, ranges ...lvm2.Range) []lvm2.Segment {
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

// Physical returns the physical extents of lv in the order of its logical extents, at least
// one range. Errors: ErrPrecondition if lv has segments that are not plain pieces of physical
// volumes.
func Physical(lv *lvm2.LV) ([]lvm2.Range, error) {
	if !Linear(lv) {
		return nil, fmt.Errorf("logical volume %s is not linear: %w: lvm2 is moving it, or has converted it", lv.Name, ErrPrecondition)
	}
	out := make([]lvm2.Range, 0, len(lv.Segments))
	for _, s := range lv.Segments {
		out = append(out, lvm2.Range{PV: s.Stripes[0].PV, Start: s.Stripes[0].Start, Count: s.Count})
	}
	return out, nil
}

// Linear reports whether every segment of lv is a plain piece of a physical volume.
func Linear(lv *lvm2.LV) bool {
	return len(lv.Segments) > 0 && !slices.ContainsFunc(lv.Segments, func(s lvm2.Segment) bool {
		return s.Type != lvm2.TypeStriped || len(s.Stripes) != 1 || s.Stripes[0].PV < 0
	})
}

// SameExtents reports whether x, of group a, and y, of group b, have the same extents of the
// same physical volumes. It compares ids, because LVM2 renumbers physical volumes.
func SameExtents(a *lvm2.VG, x *lvm2.LV, b *lvm2.VG, y *lvm2.LV) bool {
	px, err1 := Physical(x)
	py, err2 := Physical(y)
	return err1 == nil && err2 == nil && slices.EqualFunc(px, py, func(r, s lvm2.Range) bool {
		return a.PVs[r.PV].ID == b.PVs[s.PV].ID && r.Start == s.Start && r.Count == s.Count
	})
}

// LogicalOutside returns the logical extents that do not lie in known. The logical volume is
// made of ranges, and the first logical extent has the number start.
func LogicalOutside(known RangeSet, start lvm2.Extents, ranges []lvm2.Range) RangeSet {
	var out []lvm2.Range
	for _, r := range ranges {
		for _, u := range NewRangeSet(r).Subtract(known) {
			out = append(out, lvm2.Range{Start: start + u.Start - r.Start, Count: u.Count})
		}
		start += r.Count
	}
	return NewRangeSet(out...)
}

// PhysicalOf maps logical extents of lv to physical extents, in order. Errors: those of
// Physical.
func PhysicalOf(lv *lvm2.LV, logical RangeSet) ([]lvm2.Range, error) {
	has, err := Physical(lv)
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

// Tags of the group record the free extents that the driver has wiped. LVM2 may use and free
// extents without updating these tags, but it raises the generation number when it does. So
// the tags are valid only for the generation that they name.
const (
	maxCleanTag  = 900 // bytes of ranges in one tag
	maxCleanTags = 8
)

func readClean(vg *lvm2.VG) RangeSet {
	var all RangeSet
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
	return NewRangeSet(all...)
}

// WriteClean writes the set into the group's tags, for the generation of the next commit. If
// the set does not fit, WriteClean drops the smallest pieces.
func WriteClean(vg *lvm2.VG, clean RangeSet) {
	tags := DropTags(vg.Tags, tagClean)
	seqno := strconv.FormatUint(vg.Seqno+1, 10)
	bySize := slices.Clone(clean)
	slices.SortStableFunc(bySize, func(a, b lvm2.Range) int { return int(int64(b.Count) - int64(a.Count)) })
	text := ""
	written := 0
	flush := func() {
		if text != "" {
			tags = append(tags, Tag(tagClean, seqno+text))
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
		text += "/" + RangeSet{r}.String()
	}
	flush()
	vg.Tags = tags
}

// CleanExtents allocates n wiped extents on disks of a kind. If there are not enough, it turns
// as many unwiped free extents as are missing into trash for the wiper, and returns nil.
func (t *Edit) CleanExtents(kind size.Bytes, n lvm2.Extents) ([]lvm2.Range, error) {
	free := t.FreeOn(kind)
	clean := t.Clean.Intersect(free)
	if clean.Size() >= n {
		return t.Take(Pieces(clean, n, LowEnd)...), nil
	}
	trash := NewTrash()
	trash.Segments = AppendExtents(nil, t.Take(Pieces(free.Subtract(clean), n-clean.Size(), LowEnd)...)...)
	return nil, t.Put(trash)
}
