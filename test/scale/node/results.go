package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
	"time"
)

// figure is a measured value with its unit.
type figure struct {
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

func value(v float64, unit string) *figure { return &figure{v, unit} }

// say prints a figure as soon as it is measured, because a run takes long, and returns it.
func say(what string, f *figure) *figure {
	fmt.Printf("  %s: %v\n", what, f)
	return f
}

// percentile returns the smallest time that at least p percent of the times do not
// exceed, in milliseconds.
func percentile(took []time.Duration, p int) *figure {
	s := slices.Sorted(slices.Values(took))
	return value(float64(s[max(0, (len(s)*p+99)/100-1)])/float64(time.Millisecond), "ms")
}

func median(took []time.Duration) *figure { return percentile(took, 50) }

// results has all figures of a run. A figure that was not measured is nil.
type results struct {
	Kernel     string      `json:"kernel"`
	Steps      []*step     `json:"steps"`
	Activation *activation `json:"activation,omitempty"`
	Notes      []string    `json:"notes"`
}

// step has the figures at one size.
type step struct {
	Volumes          int     `json:"volumes"`
	Snapshots        int     `json:"snapshots"`
	GrowVolumes      *figure `json:"growVolumes,omitempty"`      // CreateVolume by 64 callers, while the pool grew to this size
	GrowSnapshots    *figure `json:"growSnapshots,omitempty"`    // CreateSnapshot by 16 callers, while the pool grew to this size
	Create           *figure `json:"create,omitempty"`           // CreateVolume by 64 callers at this size
	CreateTogether   *figure `json:"createTogether,omitempty"`   // the median time of these calls
	Single           *figure `json:"single,omitempty"`           // CreateVolume by one caller: median
	SingleP99        *figure `json:"singleP99,omitempty"`        // the same: 99th percentile
	Snapshot         *figure `json:"snapshot,omitempty"`         // CreateSnapshot by 16 callers
	Delete           *figure `json:"delete,omitempty"`           // DeleteVolume by 64 callers
	DeleteSnapshot   *figure `json:"deleteSnapshot,omitempty"`   // DeleteSnapshot by 16 callers
	Start            *figure `json:"start,omitempty"`            // until the socket serves with the pool open
	RSS              *figure `json:"rss,omitempty"`              // after the start
	RSSAsked         *figure `json:"rssAsked,omitempty"`         // after the lists and metrics
	RSSLoaded        *figure `json:"rssLoaded,omitempty"`        // after the creations and deletions
	Metrics          *figure `json:"metrics,omitempty"`          // time of a scrape
	MetricsSize      *figure `json:"metricsSize,omitempty"`      // its length
	ListVolumes      *figure `json:"listVolumes,omitempty"`      // of all volumes
	ListSnapshots    *figure `json:"listSnapshots,omitempty"`    // of all snapshots
	CommandVolumes   *figure `json:"commandVolumes,omitempty"`   // csi-dmsnap volumes
	CommandSnapshots *figure `json:"commandSnapshots,omitempty"` // csi-dmsnap snapshots
	CommandCheck     *figure `json:"commandCheck,omitempty"`     // csi-dmsnap check
}

// activation has the figures of a pool whose volumes have a snapshot each.
type activation struct {
	Volumes        int     `json:"volumes"`
	First          *figure `json:"first,omitempty"`          // all volumes for the first time
	Deactivate     *figure `json:"deactivate,omitempty"`     // all volumes
	Start          *figure `json:"start,omitempty"`          // of the driver, without a device
	StartActive    *figure `json:"startActive,omitempty"`    // of the driver, with the devices of all volumes
	RSSActive      *figure `json:"rssActive,omitempty"`      // after this start
	MetricsActive  *figure `json:"metricsActive,omitempty"`  // time of a scrape with all devices
	Driver         *figure `json:"driver,omitempty"`         // all volumes after a boot, by 16 callers
	LVM2           *figure `json:"lvm2,omitempty"`           // vgchange -ay
	LVM2Deactivate *figure `json:"lvm2Deactivate,omitempty"` // vgchange -an
	Ratio          *figure `json:"ratio,omitempty"`          // LVM2 / Driver
}

func (r *results) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// write writes the figures as JSON to a file, and as a table to a writer.
func (r *results) write(path string, to io.Writer) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(r.table(to), os.WriteFile(path, append(text, '\n'), 0o644))
}

// table prints the figures, with a column for each size.
func (r *results) table(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	if len(r.Steps) > 0 {
		r.stepTable(w)
	}
	if a := r.Activation; a != nil {
		fmt.Fprintf(w, "\n%d volumes with a snapshot each\t\n", a.Volumes)
		for _, row := range []struct {
			what string
			*figure
		}{
			{"first activation, 16 callers", a.First}, {"deactivation, 16 callers", a.Deactivate}, {"start", a.Start}, {"start, all active", a.StartActive},
			{"memory after that start", a.RSSActive}, {"/metrics, all active", a.MetricsActive}, {"activation after a boot, 16 callers", a.Driver},
			{"vgchange -ay", a.LVM2}, {"vgchange -an", a.LVM2Deactivate}, {"times faster", a.Ratio},
		} {
			fmt.Fprintf(w, "%s\t%s\n", row.what, row.figure)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, n := range r.Notes {
		if _, err := fmt.Fprintln(to, "-", n); err != nil {
			return err
		}
	}
	return nil
}

func (r *results) stepTable(w io.Writer) {
	fmt.Fprint(w, "\nvolumes + snapshots")
	for _, s := range r.Steps {
		fmt.Fprintf(w, "\t%d + %d", s.Volumes, s.Snapshots)
	}
	for _, row := range []struct {
		what string
		of   func(*step) *figure
	}{
		{"CreateVolume, 64 callers", func(s *step) *figure { return s.Create }},
		{"median of these calls", func(s *step) *figure { return s.CreateTogether }},
		{"CreateVolume, 1 caller: median", func(s *step) *figure { return s.Single }},
		{"CreateVolume, 1 caller: p99", func(s *step) *figure { return s.SingleP99 }},
		{"CreateSnapshot, 16 callers", func(s *step) *figure { return s.Snapshot }},
		{"DeleteVolume, 64 callers", func(s *step) *figure { return s.Delete }},
		{"DeleteSnapshot, 16 callers", func(s *step) *figure { return s.DeleteSnapshot }},
		{"CreateVolume while growing", func(s *step) *figure { return s.GrowVolumes }},
		{"CreateSnapshot while growing", func(s *step) *figure { return s.GrowSnapshots }},
		{"start", func(s *step) *figure { return s.Start }},
		{"memory after the start", func(s *step) *figure { return s.RSS }},
		{"memory after lists and metrics", func(s *step) *figure { return s.RSSAsked }},
		{"memory after the rates", func(s *step) *figure { return s.RSSLoaded }},
		{"/metrics", func(s *step) *figure { return s.Metrics }},
		{"/metrics, length", func(s *step) *figure { return s.MetricsSize }},
		{"ListVolumes, all", func(s *step) *figure { return s.ListVolumes }},
		{"ListSnapshots, all", func(s *step) *figure { return s.ListSnapshots }},
		{"csi-dmsnap volumes", func(s *step) *figure { return s.CommandVolumes }},
		{"csi-dmsnap snapshots", func(s *step) *figure { return s.CommandSnapshots }},
		{"csi-dmsnap check", func(s *step) *figure { return s.CommandCheck }},
	} {
		fmt.Fprintf(w, "\n%s", row.what)
		for _, s := range r.Steps {
			fmt.Fprintf(w, "\t%s", row.of(s))
		}
	}
	fmt.Fprintln(w)
}

// String returns the value with three significant digits.
func (f *figure) String() string {
	if f == nil {
		return "not measured"
	}
	digits := 0
	for v := f.Value; v < 100 && digits < 2; v *= 10 {
		digits++
	}
	if f.Unit[0] == '/' {
		return fmt.Sprintf("%.*f%s", digits, f.Value, f.Unit)
	}
	return fmt.Sprintf("%.*f %s", digits, f.Value, f.Unit)
}
