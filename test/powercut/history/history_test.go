package history

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// read makes an observation of blocks with these versions. A pair of versions
// stands for a block whose write was interrupted in the middle.
func read(blocks ...[]uint64) *Observation {
	var data []byte
	for b, versions := range blocks {
		p := make([]byte, Block)
		Fill(p, b, versions[0])
		if len(versions) == 2 {
			q := make([]byte, Block)
			Fill(q, b, versions[1])
			copy(p[Block/2:], q[Block/2:])
		}
		data = append(data, p...)
	}
	o := &Observation{}
	o.Add(data)
	return o
}

func only(v uint64) []uint64 { return []uint64{v} }

func apply(t *testing.T, events ...Event) *Model {
	t.Helper()
	m := NewModel()
	for _, e := range events {
		if err := m.Apply(e); err != nil {
			t.Fatalf("%+v: %v", e, err)
		}
	}
	return m
}

// volume makes a volume of three blocks, of which the first was written.
var volume = []Event{
	{Kind: Intent, Op: Create, ID: 1, Call: 2, Name: "v", Size: 3 * Block}, {Kind: Done, Call: 2},
	{Kind: Write, ID: 1, Call: 3, Block: 0, Count: 1, Version: 3}, {Kind: Wrote, ID: 1, Call: 3},
}

func check(t *testing.T, c Content, o *Observation, wrong string) {
	t.Helper()
	err := c.Compare(o)
	if wrong == "" && err != nil || wrong != "" && (err == nil || !strings.Contains(err.Error(), wrong)) {
		t.Errorf("%v, want %q", err, wrong)
	}
}

// TestHistory_writes: a block has the last acknowledged write or a later one.
func TestHistory_writes(t *testing.T) {
	m := apply(t, volume...)
	c := m.Objects[1].Content
	check(t, c, read(only(3), only(0), only(0)), "")
	check(t, c, read(only(0), only(0), only(0)), "block 0 has 0")
	check(t, c, read(only(3), only(3), only(0)), "block 1 has 3")
	check(t, c, read(only(3), only(0)), "2 blocks, not 3")
	foreign := read(only(3), only(0), only(0))
	foreign.seen[1] = only(Unknown)
	check(t, c, foreign, "foreign bytes")

	// An interrupted write may be in the content completely, partly, or not at
	// all.
	if err := m.Apply(Event{Kind: Write, ID: 1, Call: 4, Block: 0, Count: 2, Version: 4}); err != nil {
		t.Fatal(err)
	}
	for _, o := range []*Observation{read(only(4), only(4), only(0)), read(only(3), only(4), only(0)), read([]uint64{4, 3}, only(0), only(0))} {
		check(t, c, o, "")
	}
	check(t, c, read(only(0), only(0), only(0)), "block 0 has 0")
	o := read(only(3), only(4), only(0))
	if err := m.Apply(Event{Kind: Read, ID: 1, Blocks: c.Resolve(o)}); err != nil {
		t.Fatal(err)
	}
	check(t, m.Objects[1].Content, o, "")
	check(t, m.Objects[1].Content, read(only(4), only(4), only(0)), "block 0 has 4")
}

// TestHistory_bytesOfAnotherPlace: a block with bytes of another block or volume is a
// finding.
func TestHistory_bytesOfAnotherPlace(t *testing.T) {
	p := make([]byte, Block)
	Fill(p, 7, 5)
	if v := versionsOf(p, 7); !reflect.DeepEqual(v, only(5)) {
		t.Errorf("block 7: %v", v)
	}
	if v := versionsOf(p, 8); !reflect.DeepEqual(v, only(Unknown)) {
		t.Errorf("block 7's bytes in block 8: %v", v)
	}
	p[1000]++
	if v := versionsOf(p, 7); !reflect.DeepEqual(v, []uint64{5, Unknown}) {
		t.Errorf("one wrong byte: %v", v)
	}
}

// TestHistory_writesDuringCut: a snapshot that is cut during writes to three blocks
// has a consistent set of them.
func TestHistory_writesDuringCut(t *testing.T) {
	events := append([]Event{}, volume...)
	events = append(events, Event{Kind: Intent, Op: Snapshot, ID: 5, From: 1, Call: 6, Name: "s", Size: 3 * Block})
	for i := range 3 {
		n := uint64(7 + i)
		events = append(events, Event{Kind: Write, ID: 1, Call: n, Block: i, Count: 1, Version: n}, Event{Kind: Wrote, ID: 1, Call: n})
	}
	events = append(events, Event{Kind: Done, Call: 6}, Event{Kind: Write, ID: 1, Call: 10, Block: 0, Count: 1, Version: 10})
	c := apply(t, events...).Objects[5].Content
	for _, o := range []*Observation{
		read(only(3), only(0), only(0)), read(only(7), only(0), only(0)), read(only(7), only(8), only(0)), read(only(7), only(8), only(9)),
	} {
		check(t, c, o, "")
	}
	check(t, c, read(only(3), only(8), only(0)), "not of one instant")
	check(t, c, read(only(7), only(0), only(9)), "not of one instant")
	check(t, c, read(only(10), only(8), only(9)), "block 0 has 10")
}

// TestHistory_interruptedOperations: an operation whose end is unknown may have
// happened or not, but not in part.
func TestHistory_interruptedOperations(t *testing.T) {
	m := apply(t, append(append([]Event{}, volume...),
		Event{Kind: Intent, Op: Expand, ID: 1, Call: 4, Size: 4 * Block},
		Event{Kind: Intent, Op: Clone, ID: 5, Call: 6, From: 1, Name: "c", Size: 3 * Block},
		Event{Kind: Boot}, Event{Kind: Opened},
	)...)
	if o := m.Objects[1]; !o.Certain || o.Size != 3*Block || o.Wanted != 4*Block || len(m.Calls) != 0 || m.Objects[5].Certain {
		t.Errorf("%+v, %+v, calls %v", o, m.Objects[5], m.Calls)
	}
	for _, e := range []Event{{Kind: Found, ID: 1, Size: 4 * Block}, {Kind: Found, ID: 5, Gone: true}} {
		if err := m.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	if m.Objects[1].Size != 4*Block || m.Objects[5] != nil {
		t.Errorf("%+v", m.Objects)
	}
	check(t, m.Objects[1].Content, read(only(3), only(0), only(0), only(0)), "")
	if err := m.Apply(Event{Kind: Done, Call: 6}); err == nil {
		t.Error("Apply accepts an end without a beginning")
	}
	file := filepath.Join(t.TempDir(), "model")
	if err := m.Save(file); err != nil {
		t.Fatal(err)
	}
	if n, err := LoadModel(file); err != nil || !reflect.DeepEqual(n, m) {
		t.Errorf("saved %+v, loaded %+v: %v", m, n, err)
	}
}

// TestHistory_incompleteLog: a log whose last line is incomplete is read up to this
// line.
func TestHistory_incompleteLog(t *testing.T) {
	text := `{"at":1,"kind":"write","id":1,"call":3,"count":1,"version":3}` + "\n" + `{"at":2,"kind":"wro`
	file := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(file, append([]byte(text), make([]byte, size.KiB)...), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	follow := Follow{File: f}
	if e, err := follow.Next(); err != nil || len(e) != 1 || e[0].Version != 3 {
		t.Errorf("%v %v", e, err)
	}
	if _, err := f.WriteAt([]byte(`te","call":3}`+"\n"), int64(len(text))); err != nil {
		t.Fatal(err)
	}
	if e, err := follow.Next(); err != nil || len(e) != 1 || e[0].Kind != Wrote {
		t.Errorf("%v %v", e, err)
	}
}

// TestHistory_interruptedRollback: a volume whose rollback was interrupted has either
// content as a whole.
func TestHistory_interruptedRollback(t *testing.T) {
	events := append(append([]Event{}, volume...),
		Event{Kind: Intent, Op: Snapshot, ID: 5, From: 1, Call: 6, Name: "s", Size: 3 * Block}, Event{Kind: Done, Call: 6},
		Event{Kind: Write, ID: 1, Call: 7, Block: 0, Count: 2, Version: 7}, Event{Kind: Wrote, ID: 1, Call: 7},
		Event{Kind: Intent, Op: Rollback, ID: 1, From: 5, Call: 8, Size: 3 * Block})
	before, after := read(only(7), only(7), only(0)), read(only(3), only(0), only(0))
	for seen, want := range map[*Observation]bool{before: false, after: true} {
		o := apply(t, append(events, Event{Kind: Boot}, Event{Kind: Opened})...).Objects[1]
		if other, err := o.Compare(seen); other != want || err != nil {
			t.Errorf("rolled back: %t, %v", other, err)
		}
	}
	m := apply(t, append(events, Event{Kind: Opened})...)
	if _, err := m.Objects[1].Compare(read(only(7), only(0), only(0))); err == nil {
		t.Error("Compare accepts a mixture of both contents")
	}
	if err := m.Apply(Event{Kind: Read, ID: 1, Other: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Objects[1].Compare(before); err == nil {
		t.Error("Compare accepts the former content after the rollback was seen")
	}
	check(t, apply(t, append(events, Event{Kind: Done, Call: 8})...).Objects[1].Content, after, "")
	check(t, apply(t, append(events, Event{Kind: Failed, Call: 8})...).Objects[1].Content, before, "")
}

// TestHistory_transientVolume: writes to a transient volume last until the machine
// stops.
func TestHistory_transientVolume(t *testing.T) {
	events := append(append([]Event{}, volume...),
		Event{Kind: Intent, Op: Snapshot, ID: 5, From: 1, Call: 6, Name: "s", Size: 3 * Block}, Event{Kind: Done, Call: 6},
		Event{Kind: Intent, Op: Restore, ID: 7, From: 5, Call: 8, Name: "t", Size: 3 * Block, Transient: true}, Event{Kind: Done, Call: 8},
		Event{Kind: Write, ID: 7, Call: 9, Block: 1, Count: 1, Version: 9}, Event{Kind: Wrote, ID: 7, Call: 9}, Event{Kind: Killed}, Event{Kind: Opened})
	base, written := read(only(3), only(0), only(0)), read(only(3), only(9), only(0))
	o := apply(t, events...).Objects[7]
	check(t, o.Content, written, "")
	check(t, o.Content, base, "block 1 has 0")
	o = apply(t, append(events, Event{Kind: Boot})...).Objects[7]
	check(t, o.Content, base, "")
	check(t, o.Content, written, "block 1 has 9")
	// The device is removed before the volume.
	o = apply(t, append(events, Event{Kind: Intent, Op: Delete, ID: 7, Call: 10}, Event{Kind: Opened})...).Objects[7]
	for _, seen := range []*Observation{base, written} {
		if _, err := o.Compare(seen); err != nil {
			t.Error(err)
		}
	}
}

// TestHistory_transientCloneWhileWritten: after a restart a transient clone has the
// content of its cut, which may include a write that was running then.
func TestHistory_transientCloneWhileWritten(t *testing.T) {
	m := apply(t, append(volume,
		Event{Kind: Intent, Op: Clone, ID: 10, Call: 11, Name: "c", From: 1, Size: 3 * Block, Transient: true},
		Event{Kind: Write, ID: 1, Call: 12, Block: 0, Count: 1, Version: 12}, Event{Kind: Wrote, ID: 1, Call: 12},
		Event{Kind: Done, Call: 11}, Event{Kind: Boot})...)
	c := m.Objects[10].Content
	for _, v := range []uint64{3, 12} {
		check(t, c, read(only(v), only(Zero), only(Zero)), "")
	}
	check(t, c, read(only(4), only(Zero), only(Zero)), "wrong")
}

// TestHistory_interruptedAdoption: a logical volume of LVM2's whose adoption was
// interrupted is adopted with all its snapshots or not at all.
func TestHistory_interruptedAdoption(t *testing.T) {
	events := []Event{
		{Kind: Intent, Op: LVM2Create, ID: 1, Call: 2, Name: "l", Size: 2 * Block}, {Kind: Done, Call: 2},
		{Kind: Write, ID: 1, Call: 3, Block: 0, Count: 1, Version: 3}, {Kind: Wrote, ID: 1, Call: 3},
		{Kind: Intent, Op: LVM2Snapshot, ID: 4, From: 1, Call: 5, Name: "s", Size: 2 * Block}, {Kind: Done, Call: 5},
		{Kind: Write, ID: 1, Call: 6, Block: 0, Count: 1, Version: 6}, {Kind: Wrote, ID: 1, Call: 6},
	}
	m := apply(t, events...)
	if l, s := m.Objects[1], m.Objects[4]; !l.Theirs || !s.Theirs || l.Active != Active || !s.Snapshot {
		t.Errorf("by lvm2: %+v, %+v", l, s)
	}
	check(t, m.Objects[1].Content, read(only(6), only(Unknown)), "") // lvm2 wipes nothing
	check(t, m.Objects[4].Content, read(only(3), only(Unknown)), "")
	check(t, m.Objects[4].Content, read(only(6), only(Unknown)), "block 0 has 6")
	adopt := Event{Kind: Intent, Op: Adopt, ID: 1, Call: 7, Size: 2 * Block}
	if m = apply(t, append(events, adopt, Event{Kind: Done, Call: 7})...); m.Objects[1].Theirs || m.Objects[4].Theirs {
		t.Error("after the adoption an object is still LVM2's own")
	}
	m = apply(t, append(events, adopt, Event{Kind: Boot}, Event{Kind: Opened})...)
	if !m.Objects[1].Adopting || !m.Objects[4].Adopting || !m.Objects[4].Theirs {
		t.Errorf("interrupted: %+v, %+v", m.Objects[1], m.Objects[4])
	}
	for _, id := range []uint64{1, 4} {
		if err := m.Apply(Event{Kind: Found, ID: id, Size: 2 * Block, Ours: true}); err != nil {
			t.Fatal(err)
		}
	}
	if o := m.Objects[4]; o.Adopting || o.Theirs {
		t.Errorf("found adopted: %+v", o)
	}
}

// TestHistory_discards: a discarded block may have any bytes until it is written again.
func TestHistory_discards(t *testing.T) {
	events := append(slices.Clone(volume), Event{Kind: Write, Op: Discard, ID: 1, Call: 4, Block: 0, Count: 1, Version: 4})
	foreign := read(only(77), only(0), only(0))
	check(t, apply(t, events...).Objects[1].Content, foreign, "")
	events = append(events, Event{Kind: Wrote, ID: 1, Call: 4})
	check(t, apply(t, events...).Objects[1].Content, foreign, "")
	check(t, apply(t, events...).Objects[1].Content, read(only(3), only(77), only(0)), "block 1")
	events = append(events, Event{Kind: Write, ID: 1, Call: 5, Block: 0, Count: 1, Version: 5}, Event{Kind: Wrote, ID: 1, Call: 5})
	check(t, apply(t, events...).Objects[1].Content, foreign, "block 0")
	check(t, apply(t, events...).Objects[1].Content, read(only(5), only(0), only(0)), "")
}
