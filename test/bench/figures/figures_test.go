package figures

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSet_pairsAndTargets: the table and the JSON file have our figures beside the
// others', with ratios and targets.
func TestSet_pairsAndTargets(t *testing.T) {
	var s Set
	s.Add(Series{Name: "create_volume/volumes=0", Unit: "ms", Against: LVM2, Tail: true, Ours: []float64{4, 5, 100}, Theirs: []float64{600, 600, 9000}})
	s.Add(Series{Name: "create_volume/volumes=0/thin", Unit: "ms", Against: Thin, Ours: []float64{4, 5, 6}, Theirs: []float64{4, 5, 6}})
	s.Add(Series{Name: "write_throughput/block=4KiB/snapshots=1", Unit: "MiB/s", Better: Higher, Against: LVM2, Ours: []float64{100}, Theirs: []float64{50}})
	s.Add(Series{Name: "write_throughput/block=4KiB/snapshots=16", Unit: "MiB/s", Better: Higher, Against: LVM2, Ours: []float64{89}, Theirs: []float64{5}})
	s.Add(Series{Name: "freeze_window/idle", Unit: "ms", Against: Bare, Ours: []float64{2.5}, Theirs: []float64{2}})
	s.Note("a note")
	path := filepath.Join(t.TempDir(), "bench.json")
	var table strings.Builder
	if err := s.Write(path, &table); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []Figure
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	want := []struct {
		ratio float64
		met   any
	}{{120, true}, {1, nil}, {2, nil}, {17.8, false}, {0.8, true}}
	for i, w := range want {
		f := got[i]
		if f.Ratio != nil && *f.Ratio != w.ratio || f.Ratio == nil && w.ratio != 0 {
			t.Errorf("%s: ratio %v, want %v", f.Name, f.Ratio, w.ratio)
		}
		if f.Met != nil && *f.Met != w.met || f.Met == nil && w.met != nil {
			t.Errorf("%s: met %v, want %v (%s)", f.Name, f.Met, w.met, f.Target)
		}
	}
	for _, line := range []string{"a note", "dm-thin", "(p99 100)", "MISSED"} {
		if !strings.Contains(table.String(), line) {
			t.Errorf("the table lacks %q:\n%s", line, table.String())
		}
	}
	if n := strings.Count(table.String(), "create_volume/volumes=0"); n != 1 {
		t.Errorf("the figures of lvm2 and of dm-thin are in %d lines, want one:\n%s", n, table.String())
	}
}
