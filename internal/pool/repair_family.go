package pool

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

const (
	repairPatience = 5 * time.Second // how long opening a pool waits for the repair of its volumes
	repairsAtOnce  = 64
)

// families returns the families of v that have devices in the kernel, by their
// roots.
func (v *view) families(all []dm.ListEntry) map[string][]lvm2.ID {
	has := map[string]bool{}
	for _, e := range all {
		if id, _, ours := catalog.SplitUUID(v.VG.ID, e.UUID); ours {
			has[id] = true
		}
	}
	out, active := map[string][]lvm2.ID{}, map[string]bool{}
	for id, o := range v.Volumes {
		root := v.Root(o.LV.Name)
		out[root] = append(out[root], id)
		for _, lv := range o.Parts() {
			active[root] = active[root] || has[string(lv.ID)]
		}
	}
	maps.DeleteFunc(out, func(root string, _ []lvm2.ID) bool { return !active[root] })
	return out
}

// repairFamilies brings the devices of all volumes in line with the metadata, in
// the background. It holds the keys of all volumes with devices when it returns, so
// that operations wait for the repair. The channel is closed when all repairs have
// ended.
func (p *Pool) repairFamilies(ctx context.Context, v *view) <-chan struct{} {
	done := make(chan struct{})
	var running, families sync.WaitGroup
	defer func() {
		go func() {
			running.Wait()
			close(done)
		}()
	}()
	all, err := p.dm.List()
	if err != nil {
		p.log.Error(err, "Failed to look for devices that an interruption left")
		return done
	}
	turn := make(chan struct{}, repairsAtOnce)
	begin := func(release func(), what string, act func(ctx context.Context, v *view) error) {
		running.Add(1)
		begun := p.background(func(ctx context.Context) {
			defer running.Done()
			defer release()
			turn <- struct{}{}
			defer func() { <-turn }()
			if err := p.do(ctx, &change{what: "repair " + what, act: act}); err != nil && ctx.Err() == nil {
				// One volume in a bad state must not keep the others from being
				// served.
				p.log.Error(err, "Repair was incomplete; it will be retried")
			}
		})
		if !begun {
			release()
			running.Done()
		}
	}
	for root, members := range v.families(all) {
		key, err := p.keys.lock(ctx, lvKey(root)) // free: nobody uses the pool yet
		if err != nil {
			return done
		}
		families.Add(1)
		release := func() { key(); families.Done() }
		begin(release, "volume "+root, func(ctx context.Context, v *view) error { return p.repairFamily(ctx, v, members) })
	}
	if len(v.Trash) > 0 {
		running.Add(1)
		begun := p.background(func(ctx context.Context) {
			defer running.Done()
			families.Wait() // the repairs release, under their keys, the devices below deleted volumes
			if err := p.do(ctx, &change{what: "repair deleted volumes", act: p.repairTrash}); err != nil && ctx.Err() == nil {
				p.log.Error(err, "Repair was incomplete; it will be retried")
			}
		})
		if !begun {
			running.Done()
		}
	}
	return done
}

// repairTrash resumes the devices of deleted volumes, and removes those that nobody
// uses.
func (p *Pool) repairTrash(ctx context.Context, v *view) error {
	return errors.Join(p.sweep(ctx, v), p.settleSoon(v))
}

// repairFamily brings the devices of the volumes with the given ids in line. These
// volumes were a family when the repair began; LVM2 may have split it, or joined it
// to another, since then. The family's key is held.
func (p *Pool) repairFamily(ctx context.Context, v *view, ids []lvm2.ID) error {
	of := map[*catalog.Volume]bool{}
	for _, id := range ids {
		if o := v.Volumes[id]; o != nil {
			for _, lv := range v.Family(o.LV.Name) {
				of[v.VolumeByLV(lv)] = true
			}
		}
	}
	var errs []error
	for _, members := range v.MembersOf(maps.Keys(of)) {
		c := &convergence{Pool: p, view: v, members: members}
		errs = append(errs, c.converge(ctx))
	}
	return errors.Join(errs...)
}
