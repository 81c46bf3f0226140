package catalog

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog/catalogtest"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// editCase is one row of a table of edits: given logical volumes, an edit, and what the
// edit changes.
//
// A line describes a logical volume: its name, its extents on the only disk with marks,
// and its tags without the driver's prefix. "old 400+2,ro,locked role=layer lost" has the
// extents 400 and 401, is read-only, and LVM2 neither activates nor changes it. Further
// marks are "hidden"; "inactive", if LVM2 may remove but not activate it; "pvmove", if LVM2
// moves it; and "error", if the extents are of a segment of type error. Names stand for ids.
type editCase struct {
	what  string
	given []string // added to catalogtest.Group, or replaced there
	edit  func(e *Edit) error
	then  []string // logical volumes that are new or changed; "NAME gone"; "free +RANGES"; "free -RANGES"; "wiped RANGES"
	err   error    // what the edit returns; then is not compared
}

// testEdits runs a table of edits. The group after an edit must be valid for LVM2, and
// have no tag that is not understood.
func testEdits(t *testing.T, cases []editCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.what, func(t *testing.T) {
			p := group(t, c.given...)
			before := NewView(p.vg, nil)
			lines, free := p.lines(), before.Free
			own := *before
			own.VG = p.vg.Clone()
			e := &Edit{View: &own}
			if err := c.edit(e); c.err != nil || err != nil {
				if c.err == nil || !errors.Is(err, c.err) {
					t.Fatalf("the edit returned %v, want %v", err, c.err)
				}
				return
			}
			if err := e.VG.Validate(); err != nil {
				t.Errorf("the group after the edit: %v", err)
			}
			after := NewView(e.VG, before)
			if len(before.Strange) == 0 && len(after.Strange) > 0 {
				t.Errorf("not understood after the edit: %v", after.Strange)
			}
			p.vg = e.VG
			got := changes(lines, p.lines())
			for sign, s := range map[string]RangeSet{"free +": after.Free.Subtract(free), "free -": free.Subtract(after.Free), "wiped ": e.Wiped} {
				if len(s) > 0 {
					got = append(got, sign+decimal(s))
				}
			}
			var want []string
			for _, line := range c.then {
				want = append(want, ordered(line))
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
			}
			if e.Changed != (len(got) > 0) {
				t.Errorf("Changed is %v after an edit with %d changes", e.Changed, len(got))
			}
		})
	}
}

// group returns catalogtest.Group with more logical volumes, or with others in their place.
func group(t *testing.T, lines ...string) *paper {
	t.Helper()
	vg := catalogtest.Group(t)
	vg.PVs[0].Device = "/dev/sda" // otherwise nothing is free
	p := &paper{vg: vg}
	for _, line := range lines {
		p.put(t, line)
	}
	if err := vg.Validate(); err != nil {
		t.Fatalf("the given group: %v", err)
	}
	return p
}

// paper writes a group as lines.
type paper struct {
	vg    *lvm2.VG
	names []string // pairs of an id and a name, for a strings.Replacer
	n     int      // logical volumes that put added
}

// put adds the logical volume in a line to the group, or replaces it.
func (p *paper) put(t *testing.T, line string) {
	t.Helper()
	p.learn()
	var toID []string
	for i := 0; i < len(p.names); i += 2 {
		for _, key := range []string{"of", "copy", "reads", "over"} {
			toID = append(toID, key+"="+p.names[i+1]+" ", key+"="+p.names[i]+" ")
		}
	}
	word := strings.Fields(strings.NewReplacer(toID...).Replace(line + " "))
	lv := &lvm2.LV{Name: word[0], Status: []string{lvm2.StatusRead}}
	if old := p.vg.LV(word[0]); old != nil {
		lv.ID = old.ID
	} else {
		lv.ID = lvm2.ID(strings.Repeat(strconv.Itoa(p.n), 32))
		p.n++
	}
	mark := strings.Split(word[1], ",")
	for _, text := range strings.Split(mark[0], "/") {
		start, count, _ := strings.Cut(text, "+")
		a, err1 := strconv.Atoi(start)
		n, err2 := strconv.Atoi(count)
		if err1 != nil || err2 != nil {
			t.Fatalf("%s: extents %q", line, text)
		}
		if slices.Contains(mark, "error") {
			lv.Segments = []lvm2.Segment{{Count: lvm2.Extents(n), Type: lvm2.TypeError}}
			continue
		}
		lv.Segments = AppendExtents(lv.Segments, lvm2.Range{Start: lvm2.Extents(a), Count: lvm2.Extents(n)})
	}
	if !slices.Contains(mark, "ro") {
		lv.Status = append(lv.Status, lvm2.StatusWrite)
	}
	if !slices.Contains(mark, "hidden") {
		lv.Status = append(lv.Status, lvm2.StatusVisible)
	}
	if slices.Contains(mark, "pvmove") {
		lv.Status = append(lv.Status, "PVMOVE")
	}
	if slices.Contains(mark, "inactive") || slices.Contains(mark, "locked") {
		lv.Flags = slices.Clone(handsOff)
	}
	if slices.Contains(mark, "locked") {
		lv.Status = append(lv.Status, lvm2.StatusLocked)
	}
	for _, tag := range word[2:] {
		lv.Tags = append(lv.Tags, tagPrefix+tag)
	}
	add := p.vg.Add
	if p.vg.LVByID(lv.ID) != nil {
		add = p.vg.Replace
	}
	if err := add(lv); err != nil {
		t.Fatal(err)
	}
}

// learn remembers the name that each logical volume had first.
func (p *paper) learn() {
	for _, lv := range p.vg.LVs {
		if slices.Contains(p.names, string(lv.ID)) {
			continue
		}
		name := lv.Name
		if name == TrashName(lv.ID) {
			name = "trash"
		}
		p.names = append(p.names, string(lv.ID), name)
	}
}

// lines returns a line for each logical volume, by id.
func (p *paper) lines() map[lvm2.ID]string {
	p.learn()
	out := map[lvm2.ID]string{}
	for _, lv := range p.vg.LVs {
		out[lv.ID] = p.line(lv)
	}
	return out
}

func (p *paper) line(lv *lvm2.LV) string {
	name := p.names[slices.Index(p.names, string(lv.ID))+1]
	if now := lv.Name; now != name {
		if now == TrashName(lv.ID) {
			now = "trash"
		}
		if now != name {
			name += ":" + now
		}
	}
	var where string
	if s := SnapshotSegment(lv); s != nil {
		where = s.Origin + "<" + s.COWStore
	} else if takesNothing(lv) {
		where = fmt.Sprintf("0+%d,error", lv.Size())
	} else {
		r, _ := Physical(lv)
		where = decimal(r)
	}
	if ReadOnlyLV(lv) {
		where += ",ro"
	}
	if !slices.Contains(lv.Status, lvm2.StatusVisible) {
		where += ",hidden"
	}
	if Untouchable(lv) {
		where += ",locked"
	} else if inactive(lv) {
		where += ",inactive"
	}
	toName := slices.Clone(p.names)
	for i := 0; i < len(p.names); i += 2 {
		toName = append(toName, lvm2.ID(p.names[i]).String(), p.names[i+1])
	}
	line := name + " " + where
	for _, tag := range lv.Tags {
		tag = strings.TrimPrefix(tag, tagPrefix)
		if value, is := strings.CutPrefix(tag, tagCreated+"="); is && len(value) > 15 {
			tag = tagCreated + "=now"
		}
		line += " " + tag
	}
	return ordered(strings.NewReplacer(toName...).Replace(line))
}

// ordered sorts the tags in a line.
func ordered(line string) string {
	word := strings.Fields(line)
	if len(word) > 2 && word[0] != "free" {
		slices.Sort(word[2:])
	}
	return strings.Join(word, " ")
}

// changes returns the lines of after that are not in before, and a line for each logical
// volume that is gone.
func changes(before, after map[lvm2.ID]string) (out []string) {
	for id, line := range after {
		if before[id] != line {
			out = append(out, line)
		}
	}
	for id, line := range before {
		if _, stays := after[id]; !stays {
			out = append(out, strings.Fields(line)[0]+" gone")
		}
	}
	return out
}

func decimal(s RangeSet) string {
	parts := make([]string, len(s))
	for i, r := range s {
		parts[i] = fmt.Sprintf("%d+%d", r.Start, r.Count)
	}
	return strings.Join(parts, "/")
}
