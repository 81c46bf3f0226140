//go:build kernel && points

package points

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/audit"
)

// stopped returns the devices of the groups that are suspended, or that have a second table,
// each as the point that brings a device there, with a description.
func (r *rig) stopped() (map[string]string, error) {
	all, err := r.dm.List()
	if err != nil {
		return nil, err
	}
	stopped := map[string]string{}
	for _, e := range all {
		if !ofGroup(e.Name) {
			continue
		}
		info, err := r.dm.Info(e.Name)
		switch {
		case err != nil: // the device was removed just now
		case info.Suspended:
			stopped["suspend "+e.Name] = "suspended"
		case info.Loaded && info.Live: // a device that was never live blocks nobody
			stopped["load table of "+e.Name] = "with a second table"
		}
	}
	return stopped, nil
}

// leftSuspended returns an error if a device is still as the killed worker left it (left),
// suspended or with a second table. The pool is open, so the new worker must have resumed the
// device. It may have stopped the device again since: a growing store or a moving copy is
// suspended for a moment, and the later check waits for that. The worker is new, so its points
// show what it tried. They are read after the devices.
func (r *rig) leftSuspended() error {
	stopped, err := r.stopped()
	if err != nil {
		return err
	}
	for tried := range stopped {
		if _, before := r.left[tried]; !before {
			delete(stopped, tried)
		}
	}
	if len(stopped) == 0 {
		return nil
	}
	passed, err := r.passed()
	if err != nil {
		return err
	}
	for tried, state := range stopped {
		device := tried[strings.LastIndex(tried, " ")+1:]
		if !slices.Contains(passed, "before "+tried) && !slices.Contains(passed, "before resume "+device) {
			return fmt.Errorf("the pool is open, but device %s is still as the process before it left it, %s; the pool passed only %v; its log:\n%s", device, state, passed, r.w.output)
		}
	}
	return nil
}

// TestLeftSuspended_growingStore: a device that runs when the worker dies may be suspended later.
// A device that the worker left suspended, and that nobody resumes, is a finding.
func TestLeftSuspended_growingStore(t *testing.T) {
	client, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	r := &rig{dm: client}
	if r.w, err = startWorker(); err != nil {
		t.Fatal(err)
	}
	defer r.w.kill(false)
	const store = group + "-s-cow"
	_, err = client.Create(store, "")
	defer func() { _ = takeDown(client) }()
	if err == nil {
		err = errors.Join(client.Load(store, dm.Table{{Length: 8, Target: dm.ErrorTarget{}}}, false), client.Resume(store, 0))
	}
	if err == nil {
		r.left, err = r.stopped()
	}
	if err = errors.Join(err, client.Suspend(context.Background(), store, dm.SuspendOptions{})); err != nil {
		t.Fatal(err)
	}
	if err := r.leftSuspended(); err != nil {
		t.Errorf("a device that was suspended after the worker's death is a finding: %v", err)
	}
	if r.left, err = r.stopped(); err != nil {
		t.Fatal(err)
	}
	if err := r.leftSuspended(); err == nil {
		t.Error("a device that the worker left suspended is no finding")
	}
}

// verify checks the pool after an operation. If empty is set, it also deletes
// everything and checks that nothing is left.
func (r *rig) verify(empty bool) error {
	if err := r.arm(0); err != nil {
		return err
	}
	active := map[string]bool{}
	for _, name := range r.order {
		o := r.objects[name]
		if o.snapshot || o.gone || o.hidden {
			continue
		}
		if err := r.verifyVolume(o); err != nil {
			return err
		}
		active[name] = o.path != ""
	}
	for _, name := range r.order {
		if o := r.objects[name]; o.snapshot && !o.gone {
			if err := r.verifySnapshot(o); err != nil {
				return err
			}
		}
	}
	all, err := r.take()
	if err != nil {
		return err
	}
	if err := r.match(all); err != nil || !empty {
		return err
	}
	for _, a := range all {
		if err := a.Extents(); err != nil {
			return err
		}
	}
	for _, snapshots := range []bool{false, true} {
		for _, name := range r.order {
			if o := r.objects[name]; o.snapshot == snapshots && !o.gone {
				if o.path != "" {
					if err := r.deactivate(name); err != nil {
						return err
					}
				}
				if err := r.remove(name); err != nil {
					return err
				}
			}
		}
	}
	all, err = r.take()
	for _, a := range all {
		err = errors.Join(err, a.Empty(), a.Extents())
	}
	return err
}

// take audits the group, and the second group if there is one.
func (r *rig) take() (all []*audit.Audit, err error) {
	a, err := audit.Take(context.Background(), group, r.paths(), r.list, steadyLimit)
	all = append(all, a)
	if err == nil && r.pair {
		a, err = audit.Take(context.Background(), secondGroup, r.second().Devices, r.listSecond, steadyLimit)
		all = append(all, a)
	}
	if errors.Is(err, audit.ErrHung) {
		return nil, &hangError{err.Error()}
	}
	if err != nil {
		return nil, err
	}
	return all, nil
}

func (r *rig) verifyVolume(o *object) error {
	if err := errors.Join(o.stopWriter(), o.stopReader()); err != nil {
		return err
	}
	inactive := o.path == ""
	if inactive {
		if err := r.activate(o.name); err != nil {
			return err
		}
	}
	if err := o.check(o.path); err != nil {
		return err
	}
	if inactive {
		return r.deactivate(o.name)
	}
	return nil
}

// verifySnapshot compares a snapshot's content, read through a reader.
func (r *rig) verifySnapshot(o *object) error {
	rep, err := r.do(Call{Op: "create", Name: "check-" + o.name, Source: pool.Source{Kind: pool.FromSnapshot, LV: o.lv}, ReadOnly: true})
	if err != nil {
		return err
	}
	at, err := r.do(Call{Op: "activate", LV: rep.LV})
	if err != nil {
		return err
	}
	if err := o.check(at.Path); err != nil {
		return err
	}
	if _, err := r.do(Call{Op: "deactivate", LV: rep.LV}); err != nil {
		return err
	}
	_, err = r.do(Call{Op: "delete", LV: rep.LV})
	return err
}

// match compares the lists of the pools with what must exist.
func (r *rig) match(all []*audit.Audit) error {
	there := map[string]size.Bytes{}
	for _, a := range all {
		for _, v := range a.Volumes {
			there[v.Name] = v.Size
		}
		for _, s := range a.Snapshots {
			if there[s.Name] = s.Size; s.Lost {
				return fmt.Errorf("snapshot %s is lost", s.Name)
			}
		}
	}
	for _, o := range r.objects {
		if got, is := there[o.name]; is == o.gone || is && got != o.size {
			return fmt.Errorf("%s exists: %t, with %v; want %t, with %v", o.name, is, got, !o.gone, o.size)
		}
		delete(there, o.name)
	}
	if len(there) > 0 {
		return fmt.Errorf("the pool lists %v, which were not requested", there)
	}
	return nil
}
