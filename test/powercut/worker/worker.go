// Package worker is a program that runs in the machine whose power is cut. It
// checks that the pool on the machine's disks agrees with the history of the
// machine's earlier lives, and then runs a mixed load on the pool. The test in
// the parent directory and test/flush start it.
package worker

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime/pprof"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/test/powercut/history"
)

type options struct {
	disks  string
	chunk  uint64
	seed   uint64
	kills  int
	final  bool
	check  bool
	cached bool
	alone  bool
}

// aliveEvery is how often the worker logs that the machine runs, even if
// something hangs.
const aliveEvery = 500 * time.Millisecond

// Main is the program. It ends the process if anything is wrong.
func Main() {
	var o options
	var logDisk, model string
	var driver bool
	f := flag.NewFlagSet("worker", flag.ExitOnError)
	f.StringVar(&o.disks, "disks", "", "`DEVICES` of the pool, comma-separated")
	f.Uint64Var(&o.chunk, "chunk", 0, "chunk size of new snapshots, in bytes")
	f.Uint64Var(&o.seed, "seed", 1, "seed of all random choices")
	f.IntVar(&o.kills, "kills", 0, "how often to kill the driver")
	f.BoolVar(&o.final, "final", false, "check everything, delete everything and end")
	f.BoolVar(&o.check, "check", false, "check everything and end")
	f.BoolVar(&o.cached, "cached", false, "the disks have a volatile cache: a write counts as done once it is flushed")
	f.BoolVar(&o.alone, "alone", false, "the machine is only for this program: limit lvm2 to the disks")
	f.StringVar(&logDisk, "log", "", "zeroed `DEVICE` for the history")
	f.StringVar(&model, "model", "", "`FILE` with the model of the history so far")
	f.BoolVar(&driver, "driver", false, "run as the driver of another worker")
	_ = f.Parse(os.Args[1:]) // it ends the process at an error
	if driver {
		if err := runDriver(o); err != nil {
			fmt.Fprintln(os.Stderr, "driver:", err)
			os.Exit(1)
		}
		return
	}
	if o.alone {
		if err := onlyDisks(strings.Split(o.disks, ",")); err != nil {
			fail("%v", err)
		}
	}
	m, err := history.LoadModel(model)
	if err != nil {
		fail("%v", err)
	}
	log, err := history.OpenLog(logDisk, m)
	if err != nil {
		fail("%v", err)
	}
	s := newSession(o, log)
	current = s
	s.log.End(history.Event{Kind: history.Boot})
	go func() {
		for range time.Tick(aliveEvery) {
			s.log.End(history.Event{Kind: history.Alive})
		}
	}()
	s.run()
}

// current is the session that fail reports about.
var current *session

var failOnce sync.Once

// fail prints what is known about the machine and ends the program.
func fail(format string, args ...any) {
	failOnce.Do(func() {
		fmt.Fprintf(os.Stderr, "FAIL: "+format+"\n", args...)
		devices()
		logical()
		os.Exit(1)
	})
	select {} // another goroutine ends the program
}

// hung is fail for an operation that does not end. It also prints what the
// processes wait for.
func hung(format string, args ...any) {
	failOnce.Do(func() {
		fmt.Fprintf(os.Stderr, "FAIL: "+format+"\n", args...)
		devices()
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
		if current.driver.cmd.Process.Signal(syscall.SIGQUIT) == nil {
			select { // the driver writes its goroutines
			case <-current.driver.ended:
			case <-time.After(3 * time.Second):
			}
		}
		_ = os.WriteFile("/proc/sysrq-trigger", []byte("w"), 0) // blocked tasks, to the kernel log
		logical()
		os.Exit(1)
	})
	select {}
}

// devices prints the kernel's devices.
func devices() {
	client, err := dm.Open()
	if err != nil {
		return
	}
	all, _ := client.List()
	for _, d := range all {
		info, _ := client.Info(d.Name)
		table, _ := client.Table(d.Name)
		loaded, _ := client.LoadedTable(d.Name)
		fmt.Fprintf(os.Stderr, "device %s %v: open %d, suspended %t, read-only %t: %s; loaded: %s\n", d.Name, info.Device,
			info.OpenCount, info.Suspended, info.ReadOnly, strings.TrimSpace(table.String()), strings.TrimSpace(loaded.String()))
	}
}

// logical prints lvm2's list of logical volumes. It has a time limit, because a
// suspended device may block lvm2.
func logical() {
	cmd := exec.Command("lvs", "-a", "-o", "lv_name,lv_attr,lv_size,origin,seg_pe_ranges,lv_tags", vgName)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if cmd.Start() != nil {
		return
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
	}
}
