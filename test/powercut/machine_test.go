//go:build powercut

package powercut

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/powercut/history"
)

const (
	logSize   = 128 * size.MiB
	lifeLimit = 2 * time.Minute  // of a machine
	stalled   = 20 * time.Second // a machine that logs nothing for so long stands still
	opWait    = time.Second      // how long to wait for the next operation
	tailLines = 30
	mostOps   = 24 // that begin before the power is cut
)

// stall is the reason of a power cut if the virtual machine stands still, as
// User-mode Linux sometimes does: even its clock stops.
const stall = "a stall of the virtual machine"

// crash is the reason if the virtual machine's kernel dies by a fault of its
// own, as User-mode Linux rarely does (seen once in about 700 machines, in the
// scheduler). For the disks it is a power cut.
const crash = "a crash of the virtual machine"

const panicked = "Kernel panic - not syncing"

// inTarget matches a place in the code under test: a crash there is a finding.
var inTarget = regexp.MustCompile(`(?m)(RIP: |>\] ).*(dm_|\[dm|snapshot|mirror|kcopyd)`)

// crashed reports whether the machine ended by a crash that has nothing to do
// with device-mapper.
func (m *machine) crashed() bool {
	out := m.output.String()
	return strings.Contains(out, panicked) && !inTarget.MatchString(out)
}

// machine is a virtual machine that runs the worker.
type machine struct {
	run    *run
	what   string
	cmd    *exec.Cmd
	args   []string
	output *tail
	ended  chan error
	err    error // how it ended without a power cut
	log    history.Follow
	since  int64 // when the phase of opening or verifying began, in the machine's milliseconds
}

// tail keeps the last part of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const tailBytes = 512 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.buf.Len() > 2*tailBytes {
		t.buf.Next(t.buf.Len() - tailBytes)
	}
	return t.buf.Write(p)
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}

func (r *run) file(name string) string { return filepath.Join(r.dir, name) }

func (r *run) disk(name string) string { return filepath.Join(r.disks, name) }

// boot starts the next machine on the disks. It first copies the disks, so that
// a failure can be repeated.
func (r *run) boot(what string, args ...string) *machine {
	r.t.Helper()
	r.boots++
	if err := r.model.Save(r.file("model")); err != nil {
		r.t.Fatal(err)
	}
	if err := r.copyDisks(".before"); err != nil {
		r.t.Fatal(err)
	}
	log, err := os.Create(r.disk("log"))
	if err != nil {
		r.t.Fatal(err)
	}
	kernel := kernelName()
	device := "/dev/ubd" // of User-mode Linux, whose kernels have several names
	if kernel == "qemu" {
		device = "/dev/vd"
	}
	pool := device + "a"
	if r.boots > r.joins {
		pool += "," + device + "b"
	}
	m := &machine{run: r, what: what, output: &tail{}, ended: make(chan error, 1), log: history.Follow{File: log}}
	m.args = append([]string{"run", "-v", "--kernel", kernel, "--timeout", lifeLimit.String(), "--mem", "512M", "--disks",
		fmt.Sprintf("%s:%d,%s:%d,%s:%d", r.disk("pv0"), diskSizes["pv0"], r.disk("pv1"), diskSizes["pv1"], r.disk("log"), logSize), "--",
		r.file("worker"), "-alone", "-disks", pool, "-log", device + "c", "-model", r.file("model"),
		"-seed", fmt.Sprint(*seed + uint64(r.boots)), "-chunk", fmt.Sprint(4096 << (2 * r.random.IntN(3)))}, args...)
	m.cmd = exec.Command(r.file("testkernel"), m.args...)
	m.cmd.Stdout, m.cmd.Stderr = m.output, m.output
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true} // signals to the test do not reach it
	if err := m.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	go func() { m.ended <- m.cmd.Wait() }()
	return m
}

// kernelName returns the kernel to run, which is never the host's: its power
// cannot be cut.
func kernelName() string {
	switch kernel := os.Getenv("DMSNAP_KERNEL"); {
	case kernel != "" && kernel != "auto" && kernel != "host":
		return kernel
	case installed("linux.uml"):
		return "uml"
	}
	return "qemu"
}

func installed(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

// cutAt waits for the planned moment and cuts the power.
func (m *machine) cutAt(at when) {
	m.run.t.Helper()
	end := m.follow(0, func(e history.Event) bool {
		return e.Kind == at.after && (e.Kind != history.Load || e.Last)
	})
	var op history.Op
	for left := at.ops; left > 0 && end == fitting; {
		end = m.follow(opWait, func(e history.Event) bool {
			if e.Kind == history.Intent {
				left--
				op = e.Op
			}
			return left <= 0
		})
	}
	if end == fitting {
		if u := m.run.random.Float64(); at.inOp { // early moments are likelier, because the commit comes early
			time.Sleep(time.Duration(u * u * 1.25 * float64(m.run.took[op]))) // more exact than to follow the log
		} else {
			end = m.follow(max(time.Duration(u*float64(at.within)), 1), nil)
		}
	}
	switch end {
	case over:
		if !m.crashed() {
			m.failed("the machine ended before its power was cut: %v", m.err)
		}
		m.what = crash
		return
	case silent:
		m.what = stall
	}
	m.cut()
}

// cut kills the machine, as a power cut would.
func (m *machine) cut() {
	m.run.t.Helper()
	_ = m.cmd.Process.Kill() // fails if the machine has just ended
	var exit *exec.ExitError
	if err := <-m.ended; !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		m.failed("the machine ended before its power was cut: %v", err)
	}
}

// ending is the reason why follow returned.
type ending int

const (
	timeOver ending = iota
	fitting         // fits returned true for an event
	silent          // the machine stands still: even its clock has stopped
	over            // the machine ended
)

// follow takes the events of the machine's log until fits returns true for one
// of them or, if limit is not 0, the limit is over.
func (m *machine) follow(limit time.Duration, fits func(e history.Event) bool) ending {
	m.run.t.Helper()
	began := time.Now()
	heard := began
	for ; limit == 0 || time.Since(began) < limit; time.Sleep(300 * time.Microsecond) {
		events, err := m.log.Next()
		if err != nil {
			m.failed("%v", err)
		}
		if len(events) > 0 {
			heard = time.Now()
		} else if time.Since(heard) > stalled {
			return silent
		}
		found := false
		for _, e := range events {
			m.run.take(m, e)
			found = found || fits != nil && fits(e)
		}
		if found {
			return fitting
		}
		select {
		case m.err = <-m.ended:
			return over
		default:
		}
	}
	return timeOver
}

// collect takes the rest of the log, once the machine is dead and no longer has
// the disk.
func (r *run) collect(m *machine) {
	r.t.Helper()
	if err := unix.Flock(int(m.log.File.Fd()), unix.LOCK_EX); err != nil {
		m.failed("%v", err)
	}
	events, err := m.log.Next()
	if err != nil {
		m.failed("%v", err)
	}
	for _, e := range events {
		r.take(m, e)
	}
	m.log.File.Close()
	for _, line := range complaint.FindAllStringSubmatch(m.output.String(), -1) {
		r.complaints[line[1]]++
	}
}

// complaint matches a line that a driver logs as an error.
var complaint = regexp.MustCompile(`(?m)^E\d{4} \S+ +\d+ (.*(?:\n[ \t].*)*)`)

// take adds an event of the machine's log to the model and the counts.
func (r *run) take(m *machine, e history.Event) {
	r.t.Helper()
	line := r.remember(e)
	var call history.Event
	switch e.Kind {
	case history.Done:
		call = r.model.Calls[e.Call]
		r.count["operations"]++
		switch {
		case call.Op == history.Rollback:
			r.count["rollbacks"]++
		case call.Op == history.Adopt:
			r.count["adoptions"]++
		case call.Op == history.Import:
			r.count["imports"]++
		case call.Transient:
			r.count["transient volumes"]++
		}
	case history.Failed:
		r.count["refused"]++
	case history.Wrote:
		r.count["writes"]++
	case history.Killed:
		r.count["driver killed"]++
	case history.Theirs:
		r.count["activated by lvm2"]++
		r.count["compared then"] += e.Count
	case history.Boot, history.Opened:
		for _, c := range r.model.Calls {
			if c.Kind == history.Intent {
				r.count["operations interrupted"]++
				switch c.Op {
				case history.Rollback:
					r.count["rollbacks interrupted"]++
				case history.Adopt, history.Import:
					r.count["adoptions interrupted"]++
				}
			}
		}
	case history.Read:
		if o := r.model.Objects[e.ID]; o != nil && o.Snapshot {
			r.count["snapshots verified"]++
		} else {
			r.count["volumes verified"]++
		}
	}
	switch e.Kind {
	case history.Opening:
		m.since = e.At
	case history.Opened, history.Checked:
		learn(r.phases, e.Kind, e.At-m.since)
		m.since = e.At
	}
	if call.Op != "" {
		learn(r.took, call.Op, e.At-call.At)
	}
	if err := r.model.Apply(e); err != nil {
		m.failed("the history contradicts itself at %s: %v", line, err)
	}
}

// learn adds a duration in milliseconds to a moving mean.
func learn[K comparable](means map[K]time.Duration, key K, took int64) {
	means[key] += (time.Duration(took)*time.Millisecond - means[key]) / 4
}

// remember keeps the last lines of the history, and the last lines other than
// reads and writes.
func (r *run) remember(e history.Event) string {
	b, _ := json.Marshal(e)
	line := string(b)
	if e.Kind == history.Alive {
		return line
	}
	if r.recent = append(r.recent, line); len(r.recent) > 2*tailLines {
		r.recent = slices.Clone(r.recent[tailLines:])
	}
	if e.Kind == history.Write || e.Kind == history.Wrote || e.Kind == history.Read {
		return line
	}
	if r.tail = append(r.tail, line); len(r.tail) > 4*tailLines {
		r.tail = slices.Clone(r.tail[2*tailLines:])
	}
	return line
}

// failed ends the test and prints everything that is known.
func (m *machine) failed(format string, args ...any) {
	r := m.run
	r.t.Helper()
	_ = m.cmd.Process.Kill()
	if events, err := m.log.Next(); err == nil {
		for _, e := range events {
			r.remember(e)
		}
	}
	what := fmt.Sprintf(format, args...)
	r.keepDisks()
	if worker := failure.FindString(m.output.String()); worker != "" {
		what += ": " + worker
	}
	r.t.Fatalf("seed %d, machine %d (planned power cut: %s): %s\n\n"+
		"the disks are kept in %s as pv0 and pv1, and as they were before this machine in *.before; to boot it again:\n"+
		"cd %[5]s/disks; cp pv0.before pv0; cp pv1.before pv1; truncate -s0 log; ../testkernel %s\n\n"+
		"the last lines of the history without reads and writes:\n%s\n\nthe last lines of the history:\n%s\n\nkernel log and messages:\n%s",
		*seed, r.boots, m.what, what, r.dir, strings.ReplaceAll(strings.Join(m.args, " "), r.disks, r.file("disks")),
		strings.Join(r.tail[max(0, len(r.tail)-2*tailLines):], "\n"), strings.Join(r.recent[max(0, len(r.recent)-tailLines):], "\n"), m.output)
}

// failure matches the worker's message when it fails.
var failure = regexp.MustCompile(`FAIL: .*`)
