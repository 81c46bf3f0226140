//go:build powercut

// Package powercut interrupts the pool at random moments. It cuts the power of
// a virtual machine, or kills the process that has the pool while the machine
// and its volumes continue. After each interruption everything that was
// acknowledged must be there, and nothing else.
package powercut

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/test/powercut/history"
)

var (
	cuts     = flag.Int("cuts", 20, "least number of interruptions")
	duration = flag.Duration("duration", 0, "least time to run; needs a larger -timeout")
	seed     = flag.Uint64("seed", 0, "seed of all random choices; 0 takes the seed from the clock")
	keepIn   = flag.String("dir", "", "`DIR` for a directory with programs and logs, which remains with the disks after a failure; TMPDIR or /var/tmp if empty")
)

// TestCuts: machines run one after the other on the same disks, each until its power
// is cut. The last one verifies and deletes everything.
func TestCuts(t *testing.T) {
	r := newRun(t)
	r.makeDisks()
	for !r.stopped.Load() && (r.cuts() < *cuts || time.Since(r.began) < *duration) {
		kills := r.random.IntN(5) / 2
		if time.Since(r.began) >= *duration {
			kills = min(kills, *cuts-r.cuts()-1)
		}
		r.machine(kills)
	}
	r.last()
	t.Log(r.summary())
}

// TestCreation: the power is cut while the driver makes the volume group on blank
// disks, and the next machine works.
func TestCreation(t *testing.T) {
	r := newRun(t)
	for range max(2, *cuts/20) {
		r.makeDisks()
		r.cut(when{what: "opening", after: history.Opening, within: creationTakes}, 0)
		r.last()
	}
	t.Log(r.summary())
}

// creationTakes is about how long the driver takes from its start until it has
// opened a new pool.
const creationTakes = 150 * time.Millisecond

func newRun(t *testing.T) *run {
	// A machine dies with the thread that started it, so the thread must live
	// as long as this process.
	runtime.LockOSThread()
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	dir, err := os.MkdirTemp(cmp.Or(*keepIn, base()), "dmsnap-powercut-")
	if err != nil {
		t.Fatal(err)
	}
	r := &run{
		t: t, dir: dir, disks: filepath.Join(dir, "disks"), began: time.Now(), random: rand.New(rand.NewPCG(*seed, 0)), model: history.NewModel(),
		took: map[history.Op]time.Duration{}, phases: map[history.Kind]time.Duration{history.Opened: 150 * time.Millisecond, history.Checked: time.Second},
		count: map[string]int{}, complaints: map[string]int{},
	}
	r.inMemory()
	r.stopAtSignal()
	t.Cleanup(func() {
		r.result()
		os.RemoveAll(r.memory)
		r.lock.Close()
		if !t.Failed() {
			os.RemoveAll(dir)
		}
	})
	build(t, filepath.Join(dir, "testkernel"), "../../hack/kernel")
	build(t, filepath.Join(dir, "worker"), "./worker/run")
	t.Logf("seed %d", *seed)
	return r
}

// base returns a directory with room for disks.
func base() string {
	if dir := os.Getenv("TMPDIR"); dir != "" {
		return dir
	}
	return "/var/tmp"
}

func build(t *testing.T, to, pkg string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", to, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", pkg, err, out)
	}
}

// run is the state between machines.
type run struct {
	t      *testing.T
	dir    string
	disks  string   // the directory of the disks
	memory string   // the same while it is in memory; else ""
	lock   *os.File // of memory; nil without it
	began  time.Time
	random *rand.Rand
	boots  int
	joins  int // the boot after which the second disk is in the pool's configuration
	model  *history.Model
	took   map[history.Op]time.Duration
	phases map[history.Kind]time.Duration // how long it takes until these events
	count  map[string]int
	recent []string // the last lines of the history
	tail   []string // the last lines other than reads and writes

	complaints map[string]int // how often drivers logged each error

	stopped atomic.Bool // by a signal: the run ends with the next machine
}

// stopAtSignal has the run end early, with all its checks, after a signal.
func (r *run) stopAtSignal() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		for range signals {
			r.stopped.Store(true)
		}
	}()
}

// result prints the run's figures for hack/cuts, also after a failure.
func (r *run) result() {
	findings := 0
	if r.t.Failed() {
		findings = 1
	}
	fmt.Printf("result\t%d\t%d\t%d\t%d\t%d\t%d\n", *seed, r.count["power cut"], r.count["driver killed"], r.count["operations"],
		r.count["volumes verified"]+r.count["snapshots verified"]+r.count["compared then"], findings)
}

// when is the moment of a power cut.
type when struct {
	what   string
	after  history.Kind  // the moment is after this event,
	ops    int           // then after so many operations have begun,
	inOp   bool          // and then in the last of them,
	within time.Duration // or within this time
}

// moment chooses when to cut the power. It counts in operations rather than in
// seconds, so that a load does as much on a slow machine as on a fast one.
func (r *run) moment() when {
	switch k := r.random.IntN(20); {
	case k < 3:
		return when{what: "opening", after: history.Opening, within: r.phases[history.Opened] * 5 / 4}
	case k < 5:
		return when{what: "verifying", after: history.Opened, within: r.phases[history.Checked]}
	case k < 9:
		return when{what: "load", after: history.Load, ops: r.random.IntN(mostOps), within: 200 * time.Millisecond}
	default:
		return when{what: "operation", after: history.Load, ops: 1 + r.random.IntN(mostOps), inOp: true}
	}
}

// machine boots a machine and cuts its power. Before that, its driver is killed
// this number of times, unless the power cut comes earlier.
func (r *run) machine(kills int) {
	r.cut(r.moment(), kills)
}

func (r *run) cut(at when, kills int) {
	m := r.boot(at.what, "-kills", fmt.Sprint(kills))
	m.cutAt(at)
	r.wasCut(m)
}

// wasCut records that the machine's power was cut.
func (r *run) wasCut(m *machine) {
	r.collect(m)
	r.count["power cut during "+m.what]++
	r.count["power cut"]++
	if n := r.count["power cut during "+stall] + r.count["power cut during "+crash]; n > 1+max(*cuts, r.cuts())/50 {
		m.failed("too many virtual machines failed: %d times %s or %s", n, stall, crash)
	}
}

func (r *run) cuts() int { return r.count["power cut"] + r.count["driver killed"] }

// last boots the machine that verifies and deletes everything.
func (r *run) last() {
	m := r.boot("none", "-final")
	for {
		end := m.follow(0, nil)
		if end == silent {
			m.what = stall
			m.cut()
		} else if m.err != nil && m.crashed() {
			m.what = crash
		} else {
			break
		}
		r.wasCut(m)
		m = r.boot("none", "-final")
	}
	if m.err != nil {
		m.failed("the last machine failed: %v", m.err)
	}
	r.collect(m)
	if len(r.model.Objects) != 0 {
		m.failed("the pool is not empty at the end of the history")
	}
}

func (r *run) summary() string {
	var parts []string
	for _, k := range []string{"power cut", "power cut during opening", "power cut during verifying", "power cut during load", "power cut during operation",
		"power cut during " + stall, "power cut during " + crash,
		"driver killed", "operations", "operations interrupted", "rollbacks", "rollbacks interrupted", "adoptions", "imports", "adoptions interrupted", "transient volumes", "refused", "writes", "volumes verified", "snapshots verified", "activated by lvm2", "compared then"} {
		parts = append(parts, fmt.Sprintf("%s: %d", k, r.count[k]))
	}
	for _, c := range slices.Sorted(maps.Keys(r.complaints)) {
		parts = append(parts, fmt.Sprintf("\n%d times logged: %s", r.complaints[c], c))
	}
	return fmt.Sprintf("%d interruptions in %v: %s", r.cuts(), time.Since(r.began).Round(time.Second), strings.Join(parts, ", "))
}
