// Command bench measures the driver, through its CSI socket, against lvm2's
// snapshots and lvm2's thin volumes. All run in turns in the same run, on the
// same kernel and the same kind of disk. The command prints a table and writes
// the figures as JSON.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/contender"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/disk"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/figures"
)

// chunk is the driver's default chunk size; lvm2's snapshots get the same.
const chunk = 16 * size.KiB

// part is a group of figures that are measured together.
type part struct {
	about   string
	figures func(b *bench) []string // the names of all its figures
	run     func(b *bench) error    // measures the wanted figures
}

var parts = []part{
	{"creation and deletion", turnFigures, (*bench).turns},
	{"writes with snapshots", writeFigures, (*bench).writes},
	{"many snapshots against one", flatFigures, (*bench).flat},
	{"the moment of a snapshot", windowFigures, (*bench).windows},
	{"a million exceptions", millionFigures, (*bench).million},
	{"devices and memory", footprintFigures, (*bench).footprint},
	{"deletion and its space", reclaimFigures, (*bench).reclaim},
	{"restores and clones", restoreFigures, (*bench).restores},
	{"a restore against a plain volume", plainFigures, (*bench).plain},
	{"old snapshots", deepFigures, (*bench).deep},
	{"hydration", hydrationFigures, (*bench).hydration},
	{"a plain volume", overheadFigures, (*bench).overhead},
	{"many callers", callerFigures, (*bench).callers},
}

// bench is one run. Each contender has a disk of its own.
type bench struct {
	run     *regexp.Regexp
	quick   bool
	large   bool
	dir     string
	driver  string    // the driver's binary
	spare   disk.Disk // an unused disk
	ours    *contender.Driver
	fine    *contender.Driver // a pool with chunks of 4 KiB
	theirs  *contender.Parallel
	thin    *contender.Pooled // nil if the kernel has no thin pools
	figures figures.Set
}

func main() {
	driver := flag.String("driver", "bin/csi-dmsnap", "the driver's binary")
	out := flag.String("out", "out/bench.json", "file for the figures")
	run := flag.String("run", "", "measure only the figures whose names match this regular expression")
	quick := flag.Bool("quick", false, "fewer repetitions and steps; not precise enough for results")
	large := flag.Bool("large", false, "also measure large volumes, on a disk that may be larger than the host's")
	list := flag.Bool("list", false, "print the names of the figures and measure nothing")
	flag.Parse()
	klog.LogToStderr(false) // silences the pool package, which makes lvm2's groups
	klog.SetOutput(io.Discard)
	b := &bench{quick: *quick, large: *large}
	err := b.do(*driver, *run, *out, *list)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) do(driver, run, out string, list bool) (err error) {
	if b.run, err = regexp.Compile(run); err != nil {
		return err
	}
	if list {
		for _, p := range parts {
			for _, name := range p.figures(b) {
				fmt.Println(name)
			}
		}
		return nil
	}
	todo := slices.DeleteFunc(slices.Clone(parts), func(p part) bool { return !b.anyWanted(p.figures(b)...) })
	if len(todo) == 0 {
		return fmt.Errorf("no figure matches %q; -list shows the names", run)
	}
	if err := b.setUp(driver); err != nil {
		return err
	}
	defer b.ours.Stop()
	b.noteLoad("at the start")
	for _, p := range todo {
		began := time.Now()
		fmt.Printf("\n%s\n", p.about)
		if err = p.run(b); err != nil {
			err = fmt.Errorf("%s: %w", p.about, err)
			b.figures.Note("incomplete, because of an error: %v", err)
			break
		}
		fmt.Printf("(%v)\n", time.Since(began).Round(time.Second))
	}
	b.noteLoad("at the end")
	return errors.Join(err, b.figures.Write(out, os.Stdout)) // keep what was measured before an error
}

// setUp starts the driver with a pool on each of two disks, and makes volume
// groups on one disk each for lvm2's snapshots and for lvm2's thin volumes.
func (b *bench) setUp(driver string) (err error) {
	disks := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")
	if len(disks) < 5 {
		return fmt.Errorf("DMSNAP_TEST_DISKS must name five scratch disks; run this by hack/bench")
	}
	b.driver, b.spare = driver, disk.Disk(disks[4])
	if b.dir, err = os.MkdirTemp("", "dmsnap-bench-"); err != nil {
		return err
	}
	pools, err := contender.StartDriver(driver, b.dir,
		contender.Pool{Name: "ours", Disk: disk.Disk(disks[0])},
		contender.Pool{Name: "fine", Disk: disk.Disk(disks[1]), Options: map[string]string{"chunkSize": "4Ki", "firstStoreSize": "6Gi"}})
	if err != nil {
		return err
	}
	b.ours, b.fine = pools[0], pools[1]
	if b.theirs, err = contender.NewParallel(disk.Disk(disks[2]), b.dir, chunk); err != nil {
		return err
	}
	if b.thin, err = contender.NewPooled(disk.Disk(disks[3]), b.dir, 100*size.GiB); err != nil {
		b.thin = nil
		b.figures.Note("dm-thin is left out: %v", err)
	}
	b.figures.Note("p99 is over the samples taken; lvm2's snapshots have chunks of %v like ours, dm-thin has blocks of 64KiB; fio uses libaio and bypasses the page cache", chunk)
	if b.quick {
		b.figures.Note("measured with -quick; there are too few samples for precise results")
	}
	return nil
}

// contenders returns all contenders, ours first.
func (b *bench) contenders() []contender.Contender {
	all := []contender.Contender{b.ours, b.theirs}
	if b.thin != nil {
		all = append(all, b.thin)
	}
	return all
}

func (b *bench) wanted(name string) bool { return b.run.MatchString(name) }

func (b *bench) anyWanted(names ...string) bool { return slices.ContainsFunc(names, b.wanted) }

// noteLoad records the load of the machine. In a User-mode Linux only the
// guest's own load is visible, so hack/bench passes on the load of the host.
func (b *bench) noteLoad(when string) {
	path := os.Getenv("DMSNAP_BENCH_LOAD")
	if path == "" {
		path = "/proc/loadavg"
	}
	text, err := os.ReadFile(path)
	if err == nil {
		b.figures.Note("load of the machine %s: %s", when, strings.TrimSpace(string(text)))
	}
}

// samples has the samples by the title of the contender, or by the name of the
// figure.
type samples map[string][]float64

func (s samples) take(name string, value float64) { s[name] = append(s[name], value) }

// add adds the figures of the samples: ours against lvm2, and against dm-thin.
func (b *bench) add(s figures.Series, by samples) {
	if !b.wanted(s.Name) {
		return
	}
	s.Ours, s.Theirs, s.Against = by[contender.Ours], by[figures.LVM2], figures.LVM2
	b.figures.Add(s)
	if len(by[figures.Thin]) > 0 {
		s.Name, s.Note, s.Theirs, s.Against = s.Name+"/thin", "", by[figures.Thin], figures.Thin
		b.figures.Add(s)
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// timed returns how long f took, in milliseconds.
func timed(f func() error) (float64, error) {
	began := time.Now()
	err := f()
	return milliseconds(time.Since(began)), err
}
