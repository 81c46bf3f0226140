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
	diskSize  = 384 * size.MiB
	logSize   = 128 * size.MiB
	extent    = 4 * size.MiB
	lifeLimit = 2 * time.Minute  // of a machine
	stalled   = 20 * time.Second // a machine that logs nothing for so long stands still
	opWait    = time.Second      // how long to wait for an operation in which to cut the power
	tailLines = 30
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

// makeDisks makes the pool's disks. They are blank where LVM2 and others look
// for a signature. At the beginning of every extent, where new stores and
// volumes begin, they have random bytes, as an earlier owner leaves them.
func (r *run) makeDisks() {
	r.t.Helper()
	left := make([]byte, 64*size.KiB)
	for i := range left {
		left[i] = byte(r.random.Uint32())
	}
	for _, disk := range []string{"pv0", "pv1"} {
		f, err := os.Create(r.file(disk))
		if err != nil {
			r.t.Fatal(err)
		}
		err = f.Truncate(int64(diskSize))
		for at := size.MiB; at < diskSize-extent; at += size.MiB { // whatever the offset of the first extent
			_, failed := f.WriteAt(left, int64(at))
			err = errors.Join(err, failed)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			r.t.Fatal(err)
		}
	}
}

// boot starts the next machine on the disks. It first copies the disks, so that
// a failure can be repeated.
func (r *run) boot(what string, args ...string) *machine {
	r.t.Helper()
	r.boots++
	if err := r.model.Save(r.file("model")); err != nil {
		r.t.Fatal(err)
	}
	for _, disk := range []string{"pv0", "pv1"} {
		if out, err := exec.Command("cp", "--sparse=always", "--reflink=auto", r.file(disk), r.file(disk+".before")).CombinedOutput(); err != nil {
			r.t.Fatalf("copying a disk: %v\n%s", err, out)
		}
	}
	log, err := os.Create(r.file("log"))
	if err != nil {
		r.t.Fatal(err)
	}
	kernel := os.Getenv("DMSNAP_KERNEL")
	if kernel == "" || kernel == "auto" || kernel == "host" { // the host's power cannot be cut
		if kernel = "uml"; !installed("linux.uml") {
			kernel = "qemu"
		}
	}
	disks := [2]string{"/dev/ubda,/dev/ubdb", "/dev/ubdc"} // of User-mode Linux, whose kernels have several names
	if kernel == "qemu" {
		disks = [2]string{"/dev/vda,/dev/vdb", "/dev/vdc"}
	}
	m := &machine{run: r, what: what, output: &tail{}, ended: make(chan error, 1), log: history.Follow{File: log}}
	m.args = append([]string{"run", "-v", "--kernel", kernel, "--timeout", lifeLimit.String(), "--mem", "512M", "--disks",
		fmt.Sprintf("%s:%d,%s:%d,%s:%d", r.file("pv0"), diskSize, r.file("pv1"), diskSize, r.file("log"), logSize), "--",
		r.file("worker"), "-disks", disks[0], "-log", disks[1], "-model", r.file("model"),
		"-seed", fmt.Sprint(*seed + uint64(r.boots)), "-chunk", fmt.Sprint(4096 << (2 * r.random.IntN(3)))}, args...)
	m.cmd = exec.Command(r.file("testkernel"), m.args...)
	m.cmd.Stdout, m.cmd.Stderr = m.output, m.output
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	go func() { m.ended <- m.cmd.Wait() }()
	return m
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
	if end == fitting {
		end = m.follow(max(at.delay, 1), nil)
	}
	if at.inOp && end == timeOver {
		var op history.Op
		if end = m.follow(opWait, func(e history.Event) bool { op = e.Op; return e.Kind == history.Intent }); end == fitting {
			u := m.run.random.Float64()
			time.Sleep(time.Duration(u * u * 1.25 * float64(m.run.took[op]))) // early moments are likelier, because the commit comes early
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
				if c.Op == history.Rollback {
					r.count["rollbacks interrupted"]++
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
	if call.Op != "" {
		took := time.Duration(e.At-call.At) * time.Millisecond
		r.took[call.Op] += (took - r.took[call.Op]) / 4
	}
	if err := r.model.Apply(e); err != nil {
		m.failed("the history contradicts itself at %s: %v", line, err)
	}
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
	if worker := failure.FindString(m.output.String()); worker != "" {
		what += ": " + worker
	}
	r.t.Fatalf("seed %d, machine %d (planned power cut: %s): %s\n\n"+
		"the disks are kept in %s as pv0 and pv1, and as they were before this machine in *.before; to boot it again:\n"+
		"cd %[5]s; cp pv0.before pv0; cp pv1.before pv1; truncate -s0 log; ./testkernel %s\n\n"+
		"the last lines of the history without reads and writes:\n%s\n\nthe last lines of the history:\n%s\n\nkernel log and messages:\n%s",
		*seed, r.boots, m.what, what, r.dir, strings.Join(m.args, " "),
		strings.Join(r.tail[max(0, len(r.tail)-2*tailLines):], "\n"), strings.Join(r.recent[max(0, len(r.recent)-tailLines):], "\n"), m.output)
}

// failure matches the worker's message when it fails.
var failure = regexp.MustCompile(`FAIL: .*`)
