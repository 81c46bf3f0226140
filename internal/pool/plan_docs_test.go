package pool

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestPlanInDocs: the plans that docs/design shows are those that are made.
func TestPlanInDocs(t *testing.T) {
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

// TestFlatPlanInDocs does the same for a flat store.
func TestFlatPlanInDocs(t *testing.T) {
	r := newRig(newGroup(t))
	r.volume("vol", 8)
	for n := range 6 {
		r.cut("vol", fmt.Sprint("s", n+1), 2)
	}
	for n := range 5 {
		c := r.vg.LV(fmt.Sprint("s", n+1)).Clone()
		c.Tags = setTag(c.Tags, tagUsed, "1024")
		r.check(r.put(c))
	}
	r.converge("six snapshots", situation{active: []string{"vol"}})
	o := r.volumeByLV("vol")
	path := o.path(r.snapshots["s1"])
	f := &flat{of: o.lv.ID, reads: path[0].lv.ID, over: path[5].lv.ID, chunk: 8}
	lv := newFlat(f)
	lv.Tags = setTag(lv.Tags, tagUsed, "32")
	lv.Segments = appendExtents(nil, r.take(1))
	r.check(r.put(lv))
	steps := r.converge("the oldest is read", situation{active: []string{"vol"}, read: []string{"s1"}})
	name := strings.TrimPrefix(r.cowDevice(lv).name, "vg-")
	for i, s := range steps {
		s = strings.ReplaceAll(s, name, "flat-cow")
		steps[i] = strings.Replace(s, "; 4128", ";\n    4128", 1) // where the page breaks the line
	}
	shown(t, "readers", steps)
}

// shown checks that a page of the design shows these steps, one after another.
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
