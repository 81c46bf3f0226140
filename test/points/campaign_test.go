//go:build kernel && points

package points

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/audit"
)

const (
	extent       = size.MiB
	chunk        = 16 * size.KiB
	volumeSize   = 8 * size.MiB
	machineEvery = 4 // at every so many points the machine dies too
	emptyEvery   = 4 // after every so many runs everything is deleted
	quiet        = 100 * time.Millisecond
	steadyLimit  = 5 * time.Second
)

// operation is an operation that the campaign interrupts.
type operation struct {
	name   string
	config func(*pool.Config) // changes the pool's configuration until the cut
	build  func(r *rig) error // makes the pool's content, called once
	ready  func(r *rig) error // activates, and starts writers and readers; may be called again
	act    func(r *rig) error // performs the operation; called again after the cut
	opens  bool               // the operation includes opening the pool, and ready
	first  *operation         // of a repair: the operation that is cut before, at the points that at selects
	at     func(point string) bool
	cutAt  int  // of a repair: the point at which first is cut
	busy   bool // build leaves background work unfinished
	beside bool // it works on a volume that is not the pool's yet, so opening the pool does not repair it
	pair   bool // the worker has a second pool, on a disk of its own
	extend bool // from begin on the pool has a second disk, which is blank
}

// campaign cuts operations, all on one kernel.
type campaign struct {
	t     *testing.T
	dm    *dm.Client
	disks []*disk
	w     *client
	runs  int

	cuts, findings int
}

// otherFilter matches the filter of lvm2's devices in the test kernel's
// configuration.
var otherFilter = regexp.MustCompile(`global_filter = .*`)

func newCampaign(t *testing.T) *campaign {
	if os.Getenv("DMSNAP_TEST_DISKS") == "" {
		t.Fatal("run this test by hack/testkernel")
	}
	c := &campaign{t: t}
	var err error
	if c.dm, err = dm.Open(); err == nil {
		c.disks, err = newDisks(c.dm, 2)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.end)
	// Limit lvm2 to the pool's disks: there are thousands of devices, and each
	// disk has two.
	conf := filepath.Join(lvm2.SystemDir(), "lvm.conf") // hack/testkernel made it for this run only
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	only := otherFilter.ReplaceAllString(string(text), `global_filter = [ "a|/`+diskPrefix+`|", "r|.*|" ]`)
	only = strings.Replace(only, "devices {", "devices {\n\tscan = [ \"/dev/mapper\" ]", 1)
	if err := os.WriteFile(conf, []byte(only), 0o644); err != nil {
		t.Fatal(err)
	}
	return c
}

// end kills the worker and removes all devices and disks.
func (c *campaign) end() {
	if c.w != nil {
		c.w.kill(false)
	}
	if err := takeDown(c.dm); err != nil {
		c.t.Log(err)
	}
	for _, d := range c.disks {
		if err := d.remove(c.dm); err != nil {
			c.t.Log(err)
		}
	}
	c.dm.Close()
}

func (c *campaign) config() pool.Config {
	return pool.Config{
		Name: "points", VolumeGroup: group, Chunk: chunk, FirstStore: 4 * size.MiB, StoreStep: 2 * size.MiB,
		HydrationShare: 100, NoReserve: true, Clean: pool.CleanFirstUse,
	}
}

// begin brings the pool to the state in which the operation begins, with a
// worker that will be killed at the n-th point.
func (c *campaign) begin(op *operation, t *template, n int) (*rig, error) {
	if op.first != nil {
		return c.interrupt(op, t, n)
	}
	if err := c.blank(t.images); err != nil {
		return nil, err
	}
	r := &rig{dm: c.dm, disks: c.disks, config: c.config(), objects: map[string]*object{}, w: c.w, pair: op.pair, wide: op.extend}
	c.w = nil
	if op.config != nil {
		op.config(&r.config)
	}
	for _, name := range t.order {
		r.object(name)
		r.objects[name] = t.objects[name].fresh()
	}
	if r.w == nil {
		var err error
		if r.w, err = startWorker(); err != nil {
			return r, err
		}
	}
	if op.opens {
		return r, r.arm(n)
	}
	err := r.open()
	if err == nil && op.ready != nil {
		err = op.ready(r)
	}
	if err == nil {
		err = r.arm(n)
	}
	return r, err
}

// perform performs the operation, and waits for the background work that
// belongs to it.
func (r *rig) perform(op *operation) error {
	if op.first != nil {
		return r.repair(op)
	}
	if op.opens {
		if err := r.open(); err != nil {
			return err
		}
		if op.ready != nil {
			if err := op.ready(r); err != nil {
				return err
			}
		}
	}
	return op.act(r)
}

// settle waits until no more points come, and returns the points that have
// come.
func (r *rig) settle() ([]string, error) {
	before := -1
	for {
		passed, err := r.passed()
		if err != nil || len(passed) == before {
			return passed, err
		}
		before = len(passed)
		time.Sleep(quiet)
	}
}

// dry performs an operation without a cut and returns its points.
func (c *campaign) dry(op *operation, t *template) ([]string, error) {
	r, err := c.begin(op, t, 0)
	if errors.Is(err, errNotMet) {
		return nil, c.over(r, nil) // there is nothing to repair, so there are no points
	}
	if err != nil {
		return nil, c.over(r, err)
	}
	err = r.perform(op)
	var passed []string
	if err == nil {
		passed, err = r.settle()
	}
	if op.first != nil {
		passed = r.points
	}
	if err == nil {
		err = r.verify(true)
	}
	return passed, c.over(r, err)
}

// cut performs an operation that is cut at the n-th point, and checks the
// outcome. It reports whether the point was reached.
func (c *campaign) cut(op *operation, t *template, n int, machine bool) (cut bool, err error) {
	c.runs++
	began := time.Now()
	phase := func(name string) {
		if timed {
			fmt.Printf("%s:%d %s %v\n", op.name, n, name, time.Since(began).Round(time.Millisecond))
		}
		began = time.Now()
	}
	r, err := c.begin(op, t, n)
	if errors.Is(err, errNotMet) {
		return false, c.over(r, nil)
	}
	phase("begin")
	if err == nil {
		err = r.perform(op)
		if err == nil {
			_, err = r.settle()
		}
		if err == nil {
			err = r.arm(0) // until here background work may reach the point
		}
	}
	phase("perform")
	if errors.Is(err, errCut) {
		cut = true
		err = r.recover(op, c.config(), machine)
		phase("recover")
	}
	if err == nil {
		err = r.verify(c.runs%emptyEvery == 0)
	}
	phase("verify")
	return cut, c.over(r, err)
}

// recover opens the pool after a cut and repeats the operation.
func (r *rig) recover(op *operation, config pool.Config, machine bool) (err error) {
	r.w, r.opened, r.config = nil, false, config
	if machine {
		if err := r.machineDies(); err != nil {
			return err
		}
	}
	if r.left, err = r.stopped(); err != nil {
		return err
	}
	if err := r.open(); err != nil {
		return err
	}
	if !op.beside {
		if err := r.leftSuspended(); err != nil {
			return err
		}
		if _, err := audit.Steady(r.dm, group, steadyLimit); err != nil {
			return fmt.Errorf("after the pool was opened: %w", err)
		}
	}
	for _, o := range r.objects {
		if err := o.continues(r.w); err != nil {
			return fmt.Errorf("after the pool was opened: %w", err)
		}
	}
	if op.ready != nil {
		if err := op.ready(r); err != nil {
			return fmt.Errorf("after the pool was opened: %w", err)
		}
	}
	if err := op.act(r); err != nil {
		return fmt.Errorf("repeating the operation: %w", err)
	}
	return nil
}

// over ends a case. If err is nil, it keeps the worker for the next case.
func (c *campaign) over(r *rig, err error) error {
	if r == nil {
		return err
	}
	r.abandon()
	if err == nil {
		if err = r.close(); err == nil {
			r.rest()
			c.w = r.w
			return nil
		}
	}
	var hang *hangError
	hung := errors.As(err, &hang)
	told := ""
	if hung {
		told = r.devices()
	}
	if r.w != nil {
		r.w.kill(hung)
		told += "\n" + r.w.output.String()
	}
	down := takeDown(c.dm)
	r.rest()
	return errors.Join(fmt.Errorf("%w\n%s", err, told), down)
}

// devices describes all device-mapper devices, for messages.
func (r *rig) devices() string {
	var out strings.Builder
	all, _ := r.dm.List()
	for _, e := range all {
		info, err := r.dm.Info(e.Name)
		if err != nil {
			continue
		}
		table, _ := r.dm.Table(e.Name)
		loaded, _ := r.dm.LoadedTable(e.Name)
		fmt.Fprintf(&out, "device %s %v: open %d, suspended %t, read-only %t: %s; loaded: %s\n", e.Name, info.Device,
			info.OpenCount, info.Suspended, info.ReadOnly, strings.TrimSpace(table.String()), strings.TrimSpace(loaded.String()))
	}
	return out.String()
}

// timed reports whether to print how long the parts of each case take.
var timed = os.Getenv("POINTS_TIMED") != ""

// rollingStart shifts the points at which the machine dies, so that each run
// has others.
var rollingStart = rand.IntN(machineEvery)
