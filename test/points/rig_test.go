//go:build kernel && points

package points

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/audit"
)

// rig is a pool with its expected content, its writers and its readers. It
// stands for Kubernetes and the pods, so it survives the worker.
type rig struct {
	dm      *dm.Client
	disks   []*disk
	config  pool.Config
	w       *client
	pair    bool // the second disk is a second pool
	wide    bool // the second disk is the pool's, which adds it when it opens
	opened  bool
	objects map[string]*object
	order   []string          // the names of objects, oldest first
	points  []string          // the points of a repair
	left    map[string]string // the devices that the killed worker left stopped: see stopped
}

// paths returns the disks of the pool.
func (r *rig) paths() []string {
	if r.wide {
		return []string{r.disks[0].path, r.disks[1].path}
	}
	return []string{r.disks[0].path}
}

// second returns the configuration of the second pool.
func (r *rig) second() pool.Config {
	c := r.config
	c.Name, c.VolumeGroup, c.Devices = "second", secondGroup, []string{r.disks[1].path}
	return c
}

// open opens the pool in the worker. It starts a worker if there is none.
func (r *rig) open() (err error) {
	if r.opened {
		return nil
	}
	if r.w == nil {
		if r.w, err = startWorker(); err != nil {
			return err
		}
	}
	r.config.Devices, r.config.Create = r.paths(), r.wide
	configs := []pool.Config{r.config}
	if r.pair {
		configs = append(configs, r.second())
	}
	if err := r.w.call("Open", configs, &struct{}{}, openLimit+5*time.Second); err != nil {
		return fmt.Errorf("opening the pool: %w", err)
	}
	r.opened = true
	return nil
}

func (r *rig) close() error {
	if !r.opened {
		return nil
	}
	r.opened = false
	return r.w.call("Close", struct{}{}, &struct{}{}, 30*time.Second)
}

func (r *rig) arm(n int) error { return r.w.call("Arm", n, &struct{}{}, callLimit) }

func (r *rig) passed() (names []string, err error) {
	err = r.w.call("Passed", struct{}{}, &names, callLimit)
	return names, err
}

func (r *rig) list() (l audit.Listing, err error) {
	err = r.w.call("List", false, &l, callLimit)
	return l, err
}

func (r *rig) listSecond() (l audit.Listing, err error) {
	err = r.w.call("List", true, &l, callLimit)
	return l, err
}

func (r *rig) do(c Call) (Reply, error) {
	var rep Reply
	if err := r.w.call("Do", c, &rep, callLimit+5*time.Second); err != nil {
		return rep, err
	}
	if rep.Error != "" {
		return rep, fmt.Errorf("%s %s%s: %s", c.Op, c.Name, c.LV, rep.Error)
	}
	return rep, nil
}

// object returns the object of this name, and makes it if there is none.
func (r *rig) object(name string) *object {
	if o := r.objects[name]; o != nil {
		return o
	}
	o := &object{name: name, to: -1}
	r.objects[name] = o
	r.order = append(r.order, name)
	return o
}

// learn records the reply of an acknowledged call.
func (o *object) learn(rep Reply) {
	o.lv, o.size, o.certain, o.gone = rep.LV, rep.Size, true, false
}

func (r *rig) create(name string, length size.Bytes) error {
	o := r.object(name)
	o.base = []uint32{}
	rep, err := r.do(Call{Op: "create", Name: name, Size: length})
	if err == nil {
		o.learn(rep)
	}
	return err
}

// restore makes a volume from a snapshot whose content is known.
func (r *rig) restore(name, from string, c Call) error {
	o, s := r.object(name), r.objects[from]
	if o.base == nil {
		o.base = s.base
	}
	c.Op, c.Name, c.Source = "create", name, pool.Source{Kind: pool.FromSnapshot, LV: s.lv}
	rep, err := r.do(c)
	if err == nil {
		o.learn(rep)
	}
	return err
}

// copy makes a volume of the second pool from a snapshot of the first, whose
// content is known.
func (r *rig) copy(name, from string) error {
	o, s := r.object(name), r.objects[from]
	o.base, o.second = s.base, true
	rep, err := r.do(Call{Op: "copy", Name: name, Source: pool.Source{Kind: pool.FromSnapshot, LV: s.lv}, Second: true})
	if err == nil {
		o.learn(rep)
	}
	return err
}

// derive makes a snapshot or a clone of a volume that may be written meanwhile.
func (r *rig) derive(name, of string, c Call) error {
	o, v := r.object(name), r.objects[of]
	o.snapshot = c.Op == "snapshot"
	if o.of == nil {
		o.of = v
		o.from, _ = v.marks()
		if v.writer == nil {
			o.base = after(v.base, v.log, v.blocks())
		}
	}
	c.Name = name
	rep, err := r.do(c)
	if err == nil {
		if !o.certain {
			_, o.to = v.marks()
		}
		o.learn(rep)
	}
	return err
}

func (r *rig) snapshot(name, of string) error {
	return r.derive(name, of, Call{Op: "snapshot", LV: r.objects[of].lv})
}

func (r *rig) clone(name, of string) error {
	return r.derive(name, of, Call{Op: "create", Source: pool.Source{Kind: pool.FromVolume, LV: r.objects[of].lv}})
}

func (r *rig) expand(name string, length size.Bytes) error {
	o := r.objects[name]
	rep, err := r.do(Call{Op: "expand", LV: o.lv, Size: length})
	if err == nil {
		o.size = rep.Size
	}
	return err
}

func (r *rig) rollback(name, to string) error {
	o, s := r.objects[name], r.objects[to]
	_, err := r.do(Call{Op: "rollback", LV: o.lv, Source: pool.Source{LV: s.lv}})
	if err == nil {
		o.base, o.log, o.acked, o.of = s.base, nil, 0, nil
	}
	return err
}

func (r *rig) activate(names ...string) error {
	for _, name := range names {
		o := r.objects[name]
		if o.gone {
			continue // its deletion was requested, so it may not exist
		}
		rep, err := r.do(Call{Op: "activate", LV: o.lv, Second: o.second})
		if err != nil {
			return err
		}
		o.path = rep.Path
	}
	return nil
}

func (r *rig) deactivate(name string) error {
	o := r.objects[name]
	if err := errors.Join(o.stopWriter(), o.stopReader()); err != nil {
		return err
	}
	_, err := r.do(Call{Op: "deactivate", LV: o.lv, Second: o.second})
	if err != nil && o.gone && strings.Contains(err.Error(), "not found") {
		err = nil // it was deleted, but the cut came before the reply
	}
	if err == nil {
		o.path = ""
	}
	return err
}

// remove deletes a volume or a snapshot.
func (r *rig) remove(name string) error {
	o := r.objects[name]
	op := "delete"
	if o.snapshot {
		op = "drop"
	}
	o.gone = true
	_, err := r.do(Call{Op: op, LV: o.lv, Second: o.second})
	if err == nil {
		o.certain = false
	}
	return err
}

// writeTo starts a writer for each of the active volumes, and waits for its
// first write.
func (r *rig) writeTo(names ...string) error {
	for _, name := range names {
		if o := r.objects[name]; o.writer == nil && !o.gone {
			if err := o.startWriter(); err != nil {
				return err
			}
			if err := o.continues(r.w); err != nil {
				return err
			}
		}
	}
	return nil
}

// readFrom starts a reader of an active volume that nobody writes to.
func (r *rig) readFrom(name string) error {
	if o := r.objects[name]; o.reader == nil && !o.gone {
		return o.startReader()
	}
	return nil
}

// scatter writes n blocks at random places of an active volume that has no
// writer.
func (r *rig) scatter(name string, n int) error {
	o := r.objects[name]
	f, err := os.OpenFile(o.path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := directBuffer(block)
	defer unix.Munmap(b)
	for range n {
		if err := o.write(f, b, rand.IntN(o.blocks())); err != nil {
			return err
		}
	}
	return nil
}

// fillUp writes one block of each of n chunks, beginning at block from, with a
// pause after each. It stops if the worker dies.
func (r *rig) fillUp(name string, from, n int, pause time.Duration) error {
	o := r.objects[name]
	f, err := os.OpenFile(o.path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := directBuffer(block)
	defer unix.Munmap(b)
	for i := range n {
		if err := o.write(f, b, from+i*int(chunk/block)); err != nil {
			return err
		}
		select {
		case <-r.w.ended:
			return errCut
		case <-time.After(pause):
		}
	}
	return nil
}

// check compares an object that nobody writes to with a device. The object's
// content is certain afterwards.
func (o *object) check(path string) error {
	seen, err := readBlocks(path, 0, o.size)
	if err != nil {
		return fmt.Errorf("reading %s: %w", o.name, err)
	}
	return o.mustBe(seen)
}

// until waits until nothing is copied or wiped and done, unless it is nil,
// returns true for the metadata.
func (r *rig) until(done func(vg *lvm2.VG) bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	w := r.w
	go func() {
		select {
		case <-w.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		fits := false
		var err error
		if r.pair {
			err = audit.Settled(ctx, secondGroup, r.second().Devices, func(*lvm2.VG) error { return nil })
		}
		if err == nil {
			err = audit.Settled(ctx, group, r.paths(), func(vg *lvm2.VG) error {
				fits = done == nil || done(vg)
				return nil
			})
		}
		select {
		case <-w.ended:
			return w.call("Arm", 0, &struct{}{}, callLimit)
		default:
		}
		if errors.Is(err, audit.ErrHung) {
			return &hangError{err.Error()}
		}
		if err != nil || fits {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// machineDies removes everything as the end of the machine does, and then
// brings the disks back.
func (r *rig) machineDies() error {
	for _, d := range r.disks {
		if err := d.power(r.dm, false); err != nil {
			return err
		}
	}
	r.abandon()
	if err := takeDown(r.dm); err != nil {
		return err
	}
	r.rest()
	for _, o := range r.objects {
		o.path = ""
	}
	for _, d := range r.disks {
		if err := d.power(r.dm, true); err != nil {
			return err
		}
	}
	return nil
}

// abandon tells writers and readers to end, and does not wait for them.
func (r *rig) abandon() {
	for _, o := range r.objects {
		if o.writer != nil {
			end(o.writer.stop)
		}
		if o.reader != nil {
			end(o.reader.stop)
		}
	}
}

// end closes a channel that may be closed already.
func end(stop chan struct{}) {
	select {
	case <-stop:
	default:
		close(stop)
	}
}

// rest waits for the writers and readers that abandon has told to end.
func (r *rig) rest() {
	for _, o := range r.objects {
		for _, ended := range []chan struct{}{o.writer.endedOrNil(), o.reader.endedOrNil()} {
			if ended != nil {
				select {
				case <-ended:
				case <-time.After(5 * time.Second):
				}
			}
		}
		o.writer, o.reader = nil, nil
	}
}

func (w *writer) endedOrNil() chan struct{} {
	if w == nil {
		return nil
	}
	return w.ended
}

func (w *reader) endedOrNil() chan struct{} {
	if w == nil {
		return nil
	}
	return w.ended
}

// lvm runs one of LVM2's commands.
func lvm(args ...string) error {
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}
