//go:build kernel

package flush

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/powercut/history"
)

const (
	diskSize = 256 * size.MiB
	logSize  = 64 * size.MiB
	chunk    = 16 * size.KiB
	devices  = "vgcut" // the worker's group: its devices begin with the name

	loadLimit = 60 * time.Second // until the load begins
	stopLimit = 20 * time.Second
)

// firstContent returns what a disk of the pool has at first. It is blank where
// signatures are looked for. At the beginning of every extent it has random
// bytes, as an earlier owner leaves them.
func firstContent(random *rand.Rand) *memory {
	m := newMemory(nil)
	left := make([]byte, piece)
	for i := range left {
		left[i] = byte(random.Uint32())
	}
	for at := size.MiB; at < diskSize-4*size.MiB; at += size.MiB {
		_ = m.write(left, int64(at), false)
	}
	return m
}

// rig has the disks of the pool, and the disk for the worker's history.
type rig struct {
	t       *testing.T
	dm      *dm.Client
	random  *rand.Rand
	disks   []*disk
	history *disk
	dir     string
}

func newRig(t *testing.T, seed uint64, disks int) *rig {
	t.Helper()
	if os.Getenv("DMSNAP_TEST_DISKS") == "" {
		t.Fatal("run this test by hack/testkernel")
	}
	r := &rig{t: t, random: rand.New(rand.NewPCG(seed, 0)), dir: t.TempDir()}
	var err error
	if r.dm, err = dm.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.dm.Close() })
	for i := range disks {
		r.disks = append(r.disks, newDisk(t, i, diskSize, newMemory(nil)))
	}
	r.history = newDisk(t, disks, logSize, newMemory(nil))
	r.showLVM2(r.paths()...)
	return r
}

// lvm2Filter is the filter of lvm2's devices in the configuration that
// hack/testkernel made for this run.
var lvm2Filter = regexp.MustCompile(`global_filter = .*`)

// showLVM2 limits lvm2 to these devices. There are thousands of others, and
// disks below these.
func (r *rig) showLVM2(paths ...string) {
	r.t.Helper()
	conf := filepath.Join(lvm2.SystemDir(), "lvm.conf")
	text, err := os.ReadFile(conf)
	if err == nil {
		only := `global_filter = [ "a#^(` + strings.Join(paths, "|") + `)$#", "r#.*#" ]`
		err = os.WriteFile(conf, lvm2Filter.ReplaceAllLiteral(text, []byte(only)), 0o644)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// paths returns the paths of the pool's disks.
func (r *rig) paths() (paths []string) {
	for _, d := range r.disks {
		paths = append(paths, d.path)
	}
	return paths
}

// madeByLVM2 makes the volume group, in which only the first disk has metadata, and returns
// what the disks have then. A commit then flushes the second disk only if it must.
func (r *rig) madeByLVM2(first []*memory) (made []*memory) {
	r.t.Helper()
	for i, d := range r.disks {
		made = append(made, newMemory(first[i]))
		if err := d.replace(made[i]); err != nil {
			r.t.Fatal(err)
		}
	}
	paths := r.paths()
	for _, args := range [][]string{
		{"pvcreate", "-q", "-y", paths[0]}, {"pvcreate", "-q", "-y", "--metadatacopies", "0", paths[1]},
		{"vgcreate", "-q", "-y", "-s", "1m", devices, paths[0], paths[1]},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			r.t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	return made
}

// process is a worker of the power-cut test, in a process group of its own.
type process struct {
	cmd    *exec.Cmd
	output *os.File // not a pipe, which the driver would hold open
	ended  chan error
}

func (r *rig) worker(disks []string, model *history.Model, args ...string) (*process, error) {
	file := filepath.Join(r.dir, "model")
	if err := model.Save(file); err != nil {
		return nil, err
	}
	p := &process{ended: make(chan error, 1)}
	var err error
	if p.output, err = os.Create(filepath.Join(r.dir, "output")); err != nil {
		return nil, err
	}
	p.cmd = exec.Command("/proc/self/exe", append([]string{"-cached", "-disks", strings.Join(disks, ","), "-log", r.history.path,
		"-model", file, "-chunk", fmt.Sprint(uint64(chunk)), "-seed", fmt.Sprint(r.random.Uint64N(1 << 40))}, args...)...)
	p.cmd.Env = append(os.Environ(), workerVar+"=1")
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.ended <- p.cmd.Wait() }()
	return p, nil
}

func (p *process) text() string {
	text, _ := os.ReadFile(p.output.Name())
	return string(text)
}

// kill kills the worker and its driver. They end once their devices are gone.
func (p *process) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	p.output.Close()
}

// record runs the load on new disks for this long, and returns what the disks were
// asked to do.
func (r *rig) record(first []*memory, length time.Duration, kills int) []event {
	r.t.Helper()
	rec := &record{}
	for i, d := range r.disks {
		if err := d.replace(&recorded{newMemory(first[i]), rec, i}); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := r.history.replace(&recorded{newMemory(nil), rec, historyDisk}); err != nil {
		r.t.Fatal(err)
	}
	r.load(r.paths(), rec, length, kills)
	return rec.end()
}

// load runs the load on the disks for this long, then ends it as a power cut does. rec
// records the history.
func (r *rig) load(disks []string, rec *record, length time.Duration, kills int) {
	r.t.Helper()
	w, err := r.worker(disks, history.NewModel(), "-kills", fmt.Sprint(kills))
	if err != nil {
		r.t.Fatal(err)
	}
	if err := awaitLoad(rec, w.ended); err != nil {
		w.kill()
		r.t.Fatalf("the load did not begin: %v\n%s", err, w.text())
	}
	select {
	case err := <-w.ended:
		r.t.Fatalf("the load ended by itself: %v\n%s", err, w.text())
	case <-time.After(length):
	}
	rec.end()
	w.kill()
	if err := r.takeDown(); err != nil {
		r.t.Fatal(err)
	}
	<-w.ended
}

// awaitLoad waits until the history says that the last load has begun.
func awaitLoad(rec *record, ended <-chan error) error {
	h := newStory()
	seen := 0
	for end := time.Now().Add(loadLimit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		rec.mu.Lock()
		fresh := rec.events[seen:]
		seen = len(rec.events)
		rec.mu.Unlock()
		for _, e := range fresh {
			if err := h.happen(e); err != nil {
				return err
			}
		}
		if h.loading {
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("the worker ended: %w", err)
		default:
		}
	}
	return errors.New("it takes too long")
}

// takeDown removes all devices of the pool, as the end of a machine does.
func (r *rig) takeDown() error {
	for end := time.Now().Add(stopLimit); ; time.Sleep(5 * time.Millisecond) {
		all, err := r.dm.List()
		if err != nil {
			return err
		}
		var left []string
		for _, e := range all {
			if !strings.HasPrefix(e.Name, devices) {
				continue
			}
			left = append(left, e.Name)
			if info, err := r.dm.Info(e.Name); err == nil && (info.Suspended || info.Loaded) {
				_ = r.dm.Clear(e.Name)
				if info.Suspended {
					_ = r.dm.Resume(e.Name, 0)
				}
			}
			if time.Until(end) < stopLimit/2 {
				r.fail(e.Name)
			}
			if r.dm.Remove(e.Name, 0) == nil {
				_ = r.dm.RemoveNode(e.Name)
			}
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("devices cannot be removed: %v", left)
		}
	}
}

// fail makes a device fail all I/O that waits in it.
func (r *rig) fail(name string) {
	table, err := r.dm.Table(name)
	if err != nil || len(table) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if r.dm.Load(name, dm.Table{{Length: table.Length(), Target: dm.ErrorTarget{}}}, false) == nil &&
		r.dm.Suspend(ctx, name, dm.SuspendOptions{NoFlush: true, SkipLockFS: true}) == nil {
		_ = r.dm.Resume(name, 0)
	}
}
