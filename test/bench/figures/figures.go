// Package figures collects the results, compares them with their targets, and
// prints them as a table and as JSON.
package figures

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
)

// Better says which of two values is the better one.
type Better int

// Times and costs are better when lower, throughput when higher.
const (
	Lower Better = iota
	Higher
)

// Our figures are compared with these.
const (
	LVM2    = "lvm2"     // lvm2's snapshots, each with a store of its own
	Thin    = "dm-thin"  // lvm2's thin volumes and snapshots
	RawDisk = "raw disk" // the disk below, at the same place

	Bare        = "a bare freeze" // freezing and thawing the same file system
	OneSnapshot = "one snapshot"  // ours with only one snapshot
	Newest      = "the newest"    // ours with the newest snapshot
)

// Figure is one line of the results.
type Figure struct {
	Name      string   `json:"name"`
	Unit      string   `json:"unit"`
	Ours      float64  `json:"ours"` // median
	OursP99   *float64 `json:"ours_p99,omitempty"`
	Against   string   `json:"against,omitempty"`
	Theirs    *float64 `json:"theirs,omitempty"` // median
	TheirsP99 *float64 `json:"theirs_p99,omitempty"`
	Ratio     *float64 `json:"ratio,omitempty"` // how many times better ours is; the median of the pairs
	Low       *float64 `json:"ratio_low,omitempty"`
	High      *float64 `json:"ratio_high,omitempty"` // 95 % interval of Ratio
	Samples   int      `json:"samples"`
	Target    string   `json:"target,omitempty"`
	Met       *bool    `json:"met,omitempty"`
	Note      string   `json:"note,omitempty"`
}

// Series has the samples of one figure. The samples of Ours and Theirs with the
// same index are a pair: one was taken right after the other.
type Series struct {
	Name         string
	Unit         string
	Better       Better
	Against      string // "" if there is no comparison
	Ours, Theirs []float64
	Tail         bool // also give the 99th percentile
	Note         string
}

// Figure computes the figure of the samples.
func (s Series) Figure() Figure {
	f := Figure{Name: s.Name, Unit: s.Unit, Ours: Median(s.Ours), Samples: len(s.Ours), Note: s.Note}
	if s.Tail {
		f.OursP99 = new(Percentile(s.Ours, 99))
	}
	if s.Against == "" || len(s.Theirs) == 0 {
		return f
	}
	f.Against, f.Theirs = s.Against, new(Median(s.Theirs))
	if s.Tail {
		f.TheirsP99 = new(Percentile(s.Theirs, 99))
	}
	var ratios []float64
	for i := range min(len(s.Ours), len(s.Theirs)) {
		better, worse := s.Theirs[i], s.Ours[i]
		if s.Better == Higher {
			better, worse = worse, better
		}
		if worse != 0 {
			ratios = append(ratios, better/worse)
		}
	}
	if len(ratios) > 0 {
		f.Ratio = new(Median(ratios))
	}
	if low, high, ok := Interval(ratios); ok {
		f.Low, f.High = &low, &high
	}
	return f
}

// Set has all figures of a run, in the order of the measurements.
type Set struct {
	Figures []Figure
	Notes   []string // remarks about the whole run
}

// Add adds a figure and prints it immediately.
func (s *Set) Add(series Series) {
	f := series.Figure()
	s.Figures = append(s.Figures, f)
	fmt.Printf("%s: %s", f.Name, amount(f.Ours, f.OursP99, f.Unit))
	if f.Theirs != nil {
		fmt.Printf(", %s %s", f.Against, amount(*f.Theirs, f.TheirsP99, f.Unit))
	}
	fmt.Println()
}

// Note adds a remark about the whole run, unless it is there already.
func (s *Set) Note(format string, args ...any) {
	n := fmt.Sprintf(format, args...)
	if !slices.Contains(s.Notes, n) {
		s.Notes = append(s.Notes, n)
	}
}

func (s *Set) find(name string) *Figure {
	for i := range s.Figures {
		if s.Figures[i].Name == name {
			return &s.Figures[i]
		}
	}
	return nil
}

// Write compares the figures with their targets, writes them to the file at
// path and prints the table.
func (s *Set) Write(path string, to io.Writer) error {
	s.judge()
	text, err := json.MarshalIndent(s.Figures, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return err
	}
	return s.table(to)
}
