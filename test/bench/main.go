// Command bench measures the driver, through its CSI socket, against lvm2's
// snapshots and lvm2's thin volumes: the same kernel, the same kind of disk, the
// same run, in turns. It prints a table and writes the figures as JSON.
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

// chunk is the driver's default; lvm2's snapshots get the same.
const chunk = 16 * size.KiB

// part is what is measured together.
type part struct {
	about   string
	figures func(b *bench) []string // all that it can measure
	run     func(b *bench) error    // measures those that are wanted
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
	{"old snapshots", deepFigures, (*bench).deep},
	{"hydration", hydrationFigures, (*bench).hydration},
	{"a plain volume", overheadFigures, (*bench).overhead},
}

// bench is one run. Each contender has a disk of its own.
type bench struct {
	run     *regexp.Regexp
	quick   bool
	large   bool
	dir     string
	driver  string    // its binary
	spare   disk.Disk // on which nothing is
	ours    *contender.Driver
	fine    *contender.Driver // a pool with chunks of 4 KiB
	theirs  *contender.Parallel
	thin    *contender.Pooled // nil: the kernel has none
	figures figures.Set
}

func main() {
	driver := flag.String("driver", "bin/csi-dmsnap", "the driver's binary")
	out := flag.String("out", "out/bench.json", "file for the figures")
	run := flag.String("run", "", "measure only the figures whose names match this regular expression")
	quick := flag.Bool("quick", false, "fewer repetitions and steps: a look, not a result")
	large := flag.Bool("large", false, "also what takes large volumes, on a disk that is larger than the host's may be")
	list := flag.Bool("list", false, "print the names of the figures, measure nothing")
	flag.Parse()
	klog.LogToStderr(false) // of the engine, which makes lvm2's groups
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
		return fmt.Errorf("no figure matches %q: -list shows their names", run)
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
			b.figures.Note("measured until an error: %v", err)
			break
		}
		fmt.Printf("(%v)\n", time.Since(began).Round(time.Second))
	}
	b.noteLoad("at the end")
	return errors.Join(err, b.figures.Write(out, os.Stdout)) // what was measured is worth having
}

// setUp starts the driver on two disks and gives one each to lvm2's two ways.
func (b *bench) setUp(driver string) (err error) {
	disks := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")
	if len(disks) < 5 {
		return fmt.Errorf("five scratch disks are needed: run this by hack/bench")
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
	b.figures.Note("p99 is of the samples that there are; lvm2's snapshots have chunks of %v like ours, dm-thin blocks of 64KiB; fio with libaio, past the page cache", chunk)
	if b.quick {
		b.figures.Note("measured with -quick: too few samples for more than a look")
	}
	return nil
}

// contenders are all, ours first.
func (b *bench) contenders() []contender.Contender {
	all := []contender.Contender{b.ours, b.theirs}
	if b.thin != nil {
		all = append(all, b.thin)
	}
	return all
}

func (b *bench) wanted(name string) bool { return b.run.MatchString(name) }

func (b *bench) anyWanted(names ...string) bool { return slices.ContainsFunc(names, b.wanted) }

// noteLoad records how busy the machine is: of User Mode Linux only the guest's
// own load shows, so the runner gives that of the host.
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

// samples are by the title of the contender, or by the name of the figure.
type samples map[string][]float64

func (s samples) take(name string, value float64) { s[name] = append(s[name], value) }

// add makes the figures of samples: ours against lvm2, and against dm-thin.
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
