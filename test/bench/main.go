// Command bench measures the driver, through its CSI socket, against lvm2's
// commands: the same kernel, the same kind of disk, the same run, in turns. It
// prints a table and writes the figures as JSON.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"
)

// result is one line of out/bench.json. Ratio says how many times better ours is.
type result struct {
	Name   string  `json:"name"`
	Ours   float64 `json:"ours"`
	Theirs float64 `json:"theirs"`
	Ratio  float64 `json:"ratio"`
	Unit   string  `json:"unit"`
}

func main() {
	driver := flag.String("driver", "bin/csi-dmsnap", "the driver's binary")
	out := flag.String("out", "out/bench.json", "file for the figures")
	pairs := flag.Int("pairs", 7, "measurements of each kind; their median counts")
	flag.Parse()
	b, err := newBench(*driver, *pairs)
	if err == nil {
		err = b.run()
	}
	if b != nil {
		b.stop()
	}
	if err == nil {
		err = report(b.results, *out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func report(results []result, path string) error {
	text, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tours\tlvm2\ttimes better\t")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%.2f %s\t%.2f %s\t%.0f\t\n", r.Name, r.Ours, r.Unit, r.Theirs, r.Unit, r.Ratio)
	}
	return w.Flush()
}

// median of durations, in milliseconds.
func median(all []time.Duration) float64 {
	slices.Sort(all)
	m := all[len(all)/2]
	if len(all)%2 == 0 {
		m = (m + all[len(all)/2-1]) / 2
	}
	return float64(m) / float64(time.Millisecond)
}

// timed returns how long f took.
func timed(f func() error) (time.Duration, error) {
	began := time.Now()
	err := f()
	return time.Since(began), err
}
