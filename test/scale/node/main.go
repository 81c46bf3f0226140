// Command node measures the driver, through its CSI socket, with many volumes and
// snapshots on one node: rates, the time to start, memory, and what lists and
// metrics cost. It ends with the activation of all volumes after a boot, against
// vgchange -ay in the same kernel. The command prints a table and writes the
// figures as JSON.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// snapshotsEach is the number of snapshots of each volume in the steps.
const snapshotsEach = 4

// scale is one run.
type scale struct {
	binary  string
	dir     string
	out     string
	samples int // calls of a single caller at each size
	results results
}

func main() {
	s := scale{}
	flag.StringVar(&s.binary, "driver", "bin/csi-dmsnap", "the driver's binary")
	flag.StringVar(&s.out, "out", "out/scale.json", "file for the figures")
	flag.IntVar(&s.samples, "samples", 200, "calls of a single caller at each size")
	steps := flag.String("steps", "1000,4000,10000", "logical volumes at each step, a fifth of them volumes and the rest snapshots; none if empty")
	activate := flag.Int("activate", 1000, "volumes, with a snapshot each, to activate after a boot; 0 leaves that out")
	short := flag.Bool("short", false, "only a few steps and calls, for a few minutes; not precise enough for results")
	flag.Parse()
	if *short {
		*steps, *activate, s.samples = "100,400", 50, 40
	}
	if err := s.run(*steps, *activate); err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(1)
	}
}

func (s *scale) run(steps string, activate int) (err error) {
	disks := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")
	if len(disks) < 2 {
		return errors.New("DMSNAP_TEST_DISKS must name two scratch disks; run this by hack/scale")
	}
	var sizes []int
	for n := range strings.SplitSeq(steps, ",") {
		if n == "" {
			continue
		}
		size, err := strconv.Atoi(n)
		if err != nil || size < snapshotsEach+1 {
			return fmt.Errorf("step %q: a number of at least %d is needed", n, snapshotsEach+1)
		}
		sizes = append(sizes, size)
	}
	slices.Sort(sizes)
	if s.dir, err = os.MkdirTemp("", "dmsnap-scale-"); err != nil {
		return err
	}
	defer os.RemoveAll(s.dir)
	s.results.Kernel = kernel()
	s.noteLoad("at the start")
	if len(sizes) > 0 {
		err = s.steps(disks[0], sizes)
	}
	if err == nil && activate > 0 {
		err = s.activation(disks[1], activate)
	}
	if err != nil {
		s.results.note("incomplete, because of an error: %v", err)
	}
	s.noteLoad("at the end")
	return errors.Join(err, s.results.write(s.out, os.Stdout)) // keep what was measured before an error
}

// steps measures a pool while it grows from size to size.
func (s *scale) steps(disk string, sizes []int) error {
	dir := filepath.Join(s.dir, "steps")
	d, err := start(s.binary, dir, disk)
	if err != nil {
		return err
	}
	defer func() { d.kill() }()
	for _, lvs := range sizes {
		at := step{Volumes: lvs / (snapshotsEach + 1)}
		at.Snapshots = at.Volumes * snapshotsEach
		s.results.Steps = append(s.results.Steps, &at)
		fmt.Printf("%d volumes, %d snapshots\n", at.Volumes, at.Snapshots)
		if err := s.grow(d, &at); err != nil {
			return err
		}
		if err := s.rates(d, &at); err != nil {
			return err
		}
		if at.RSSLoaded, err = d.rss(); err != nil {
			return err
		}
		if err := d.stop(); err != nil {
			return err
		}
		if d, err = start(s.binary, dir, disk); err != nil {
			return err
		}
		at.Start = say("start", d.started)
		if err := s.queries(d, &at); err != nil {
			return err
		}
	}
	return d.stop()
}

// noteLoad records the load of the machine. In a User-mode Linux only the
// guest's own load is visible, so hack/scale passes on the load of the host.
func (s *scale) noteLoad(when string) {
	path := os.Getenv("DMSNAP_BENCH_LOAD")
	if path == "" {
		path = "/proc/loadavg"
	}
	if text, err := os.ReadFile(path); err == nil {
		s.results.note("load of the machine %s: %s", when, strings.TrimSpace(string(text)))
	}
}

func kernel() string {
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(text))
}
