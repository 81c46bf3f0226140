package lvm2

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// area is a range of extents of a physical volume.
type area struct {
	pv           int
	start, count Extents
}

func (lv *LV) sortSegments() {
	slices.SortStableFunc(lv.Segments, func(a, b Segment) int { return cmp.Compare(a.Start, b.Start) })
}

func (d *decoder) segment(n *node, pvs map[string]int) Segment {
	d.distinct(n.children)
	s := Segment{
		Start: d.extents(n.children, "start_extent"),
		Count: d.extents(n.children, "extent_count"),
		Type:  d.text(n.children, "type"),
	}
	switch s.Type {
	case TypeStriped:
		d.striped(&s, n, pvs)
	case TypeSnapshot:
		d.snapshot(&s, n)
	case TypeError: // no keys of its own
	default:
		s.areas = foreignAreas(n.children, pvs, s.Count, nil)
	}
	for i := range n.children {
		if key := n.children[i].key; !slices.Contains(segmentKeys, key) && !slices.Contains(typeKeys[s.Type], key) {
			s.extra += n.children[i].source + "\n"
		}
	}
	return s
}

// The keys for which Segment has fields: of every segment, and of the types that this
// package edits.
var (
	segmentKeys = []string{"start_extent", "extent_count", "type"}
	typeKeys    = map[string][]string{
		TypeStriped:  {"stripe_count", "stripe_size", "stripes"},
		TypeSnapshot: {"chunk_size", "origin", "cow_store", "merging_store"},
	}
)

func (d *decoder) striped(s *Segment, n *node, pvs map[string]int) {
	list := find(n.children, "stripes")
	count := d.number(n.children, "stripe_count")
	if list == nil || !list.array || count == 0 || uint64(len(list.values)) != 2*count {
		d.failf("the stripes of %s are missing or not stripe_count pairs", n.key)
		return
	}
	if find(n.children, "stripe_size") != nil {
		s.StripeSize = size.Sectors(d.number(n.children, "stripe_size"))
	}
	s.Stripes = make([]Stripe, 0, count)
	for v := list.values; len(v) > 0; v = v[2:] {
		start, ok := extentValue(v[1])
		if v[0].kind != stringValue || !ok {
			d.failf("a stripe of %s is not a name and an extent", n.key)
			return
		}
		// Names of physical volumes take precedence, as in lvm2.
		if pv, ok := pvs[v[0].text]; ok {
			s.Stripes = append(s.Stripes, Stripe{PV: pv, Start: start})
		} else {
			s.Stripes = append(s.Stripes, Stripe{PV: -1, LV: v[0].text, Start: start})
		}
	}
}

func (d *decoder) snapshot(s *Segment, n *node) {
	s.Snapshot = &SnapshotSegment{ChunkSize: size.Sectors(d.number(n.children, "chunk_size")), Origin: d.text(n.children, "origin")}
	if find(n.children, "merging_store") != nil {
		s.Snapshot.Merging = true
		s.Snapshot.COWStore = d.text(n.children, "merging_store")
	} else {
		s.Snapshot.COWStore = d.text(n.children, "cow_store")
	}
}

func extentValue(v value) (Extents, bool) {
	n, err := strconv.ParseInt(v.text, 0, 64)
	return Extents(n), v.kind == intValue && err == nil && n >= 0 && n <= maxExtents
}

// foreignAreas returns the areas that a segment of an unknown type may use: each
// physical volume's name that is followed by a number in a list. The length of such
// an area is unknown, but no type of lvm2 uses more than the segment's length.
func foreignAreas(nodes []node, pvs map[string]int, count Extents, found []area) []area {
	for _, n := range nodes {
		found = foreignAreas(n.children, pvs, count, found)
		for i := 0; i+1 < len(n.values); i++ {
			pv, ok := pvs[n.values[i].text]
			if !ok || n.values[i].kind != stringValue {
				continue
			}
			if start, ok := extentValue(n.values[i+1]); ok {
				found = append(found, area{pv, start, count})
			}
		}
	}
	return found
}

// used returns the extents of physical volumes that the segment maps.
func (s *Segment) used(yield func(area) bool) {
	for _, a := range s.areas {
		if !yield(a) {
			return
		}
	}
	for _, stripe := range s.Stripes {
		if stripe.PV >= 0 && !yield(area{stripe.PV, stripe.Start, s.Count / Extents(len(s.Stripes))}) {
			return
		}
	}
}

// encode appends the segment in lvm2's format.
func (s *Segment) encode(b *strings.Builder, number int, pvs []*PV) {
	b.WriteString("segment" + strconv.Itoa(number) + " {\n")
	writeNumber(b, "start_extent", uint64(s.Start))
	writeNumber(b, "extent_count", uint64(s.Count))
	b.WriteString("\ntype = " + quote(s.Type) + "\n")
	b.WriteString(s.extra)
	switch {
	case s.Snapshot != nil:
		store := "cow_store"
		if s.Snapshot.Merging {
			store = "merging_store"
		}
		writeNumber(b, "chunk_size", uint64(s.Snapshot.ChunkSize))
		b.WriteString("origin = " + quote(s.Snapshot.Origin) + "\n")
		b.WriteString(store + " = " + quote(s.Snapshot.COWStore) + "\n")
	case len(s.Stripes) > 0:
		writeNumber(b, "stripe_count", uint64(len(s.Stripes)))
		if s.StripeSize > 0 {
			writeNumber(b, "stripe_size", uint64(s.StripeSize))
		}
		b.WriteString("\nstripes = [")
		for i, stripe := range s.Stripes {
			name := stripe.LV
			if stripe.PV >= 0 {
				name = pvs[stripe.PV].key
			}
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString("\n" + quote(name) + ", " + strconv.FormatUint(uint64(stripe.Start), 10))
		}
		b.WriteString("\n]\n")
	}
	b.WriteString("}\n")
}
