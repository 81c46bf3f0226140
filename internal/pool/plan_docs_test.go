package pool

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
)

// TestPlan_asInTheDocs: the plans in docs/design are the plans that the driver makes.
func TestPlan_asInTheDocs(t *testing.T) {
	r := newRig(newGroup(t))
	r.volume("vol", 8)
	r.cut("vol", "s1", 8)
	r.converge("one snapshot", situation{active: []string{"vol"}})
	r.cut("vol", "s2", 8)
	read := situation{active: []string{"vol"}, read: []string{"s1"}}
	plan := r.plan(read)
	shown(t, "convergence", r.steps(plan))
	for n, step := range r.steps(plan) {
		if step == "resume s2" || step == "resume s1" {
			killed := r.copy()
			for _, s := range plan[:n] {
				r.check(killed.apply(s))
			}
			shown(t, "convergence", r.steps(killed.plan(read)))
		}
	}
}

// TestPlan_flatStoreAsInTheDocs: the plan for a flat store in docs/design is the plan
// that the driver makes.
func TestPlan_flatStoreAsInTheDocs(t *testing.T) {
	r := newRig(newGroup(t))
	r.volume("vol", 8)
	for n := range 6 {
		r.cut("vol", fmt.Sprint("s", n+1), 2)
	}
	for n := range 5 {
		c := r.VG.LV(fmt.Sprint("s", n+1)).Clone()
		c.Tags = catalog.SetTag(c.Tags, "used", "1024")
		r.check(r.Put(c))
	}
	r.converge("six snapshots", situation{active: []string{"vol"}})
	o := r.VolumeByLV("vol")
	path := o.Path(r.Snapshots.Get("s1"))
	f := &catalog.Flat{Of: o.LV.ID, Reads: path[0].LV.ID, Over: path[5].LV.ID, Chunk: 8}
	lv := catalog.NewFlat(f)
	lv.Tags = catalog.SetTag(lv.Tags, "used", "32")
	lv.Segments = catalog.AppendExtents(nil, r.take(1))
	r.check(r.Put(lv))
	steps := r.converge("the oldest is read", situation{active: []string{"vol"}, read: []string{"s1"}})
	name := strings.TrimPrefix(r.view().cowDevice(lv).name, "vg-")
	for i, s := range steps {
		s = strings.ReplaceAll(s, name, "flat-cow")
		steps[i] = strings.Replace(s, "; 4128", ";\n    4128", 1) // the page breaks the line here
	}
	shown(t, "readers", steps)
}

// shown checks that a page of the design shows these steps, one after the other.
func shown(t *testing.T, page string, steps []string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/design/" + page + ".md")
	if err != nil {
		t.Fatal(err)
	}
	want := "\n\n    " + strings.ReplaceAll(strings.Join(steps, "\n"), "\n", "\n    ") + "\n\n"
	if !strings.Contains(string(text), want) {
		t.Errorf("docs/design/%s.md does not show%s", page, want)
	}
}
