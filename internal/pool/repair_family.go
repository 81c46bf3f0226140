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
	for id, o := range v.Volumes.All() {
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
	seen := p.lookAtPlain(ctx, all)
	for root, members := range v.families(all) {
		key, err := p.keys.lock(ctx, lvKey(root)) // free: nobody uses the pool yet
		if err != nil {
			return done
		}
		families.Add(1)
		release := func() { key(); families.Done() }
		begin(release, "volume "+root, func(ctx context.Context, v *view) error { return p.repairFamily(ctx, v, members, seen[root]) })
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

// plain reports whether o reads through no other volume, and whether only its own devices
// and those of its layers can exist.
func (v *view) plain(o *catalog.Volume) bool {
	return o != nil && o.From() == "" && len(o.Flats) == 0 && o.Copying == nil && o.Theirs() == ""
}

// lookAtPlain looks at the devices of all plain volumes, which it finds in the list all.
// Usually these devices are right, and a list for each volume would take long. It returns
// the devices by the name of the volume, and none if it fails.
func (p *Pool) lookAtPlain(ctx context.Context, all []dm.ListEntry) (seen map[string]kernel) {
	err := p.do(ctx, &change{what: "look at the devices of volume group " + p.vgName, act: func(_ context.Context, v *view) error {
		var of []dm.ListEntry
		for _, e := range all {
			if id, _, ours := catalog.SplitUUID(v.VG.ID, e.UUID); ours && v.plain(v.OwnerOf(lvm2.ID(id))) {
				of = append(of, e)
			}
		}
		k, err := lookAtAll(p.dm, v.VG.ID, of, false)
		seen = v.split(k)
		return err
	}})
	if err != nil {
		p.log.Error(err, "Failed to look at the devices of all volumes together; they are looked at volume by volume")
		return nil
	}
	return seen
}

// isRight reports whether a family is a single plain volume whose devices, k, need no
// change. Before it asks for any status, it makes sure that no device is suspended.
func (p *Pool) isRight(ctx context.Context, v *view, ids []lvm2.ID, k kernel) bool {
	o := v.Volumes.Get(ids[0])
	if len(ids) != 1 || len(k) == 0 || !v.plain(o) {
		return false
	}
	for _, d := range k {
		if !d.Live || d.Suspended || d.Loaded {
			return false
		}
	}
	for _, l := range o.Layers {
		if has := k[v.snapDevice(l.LV).uuid] != nil; has != (l == o.Live()) && (has || k[v.topDevice(o.LV).uuid] != nil) {
			return false // an older layer is in use, or the newest one is not a snapshot yet
		}
	}
	c := &convergence{Pool: p, view: v, members: []*catalog.Volume{o}, stuck: map[lvm2.ID]error{}}
	// The plan asks for no status. If it is empty, no device lies on a device of a deleted
	// volume, which may be suspended and is not in k.
	return len(c.plan(k)) == 0 && len(c.want.open) == 0 && c.losses(k) == nil && len(c.stuck) == 0 && c.visible(ctx, k) == nil
}

// repairTrash resumes the devices of deleted volumes, and removes those that nobody
// uses.
func (p *Pool) repairTrash(ctx context.Context, v *view) error {
	return errors.Join(p.sweep(ctx, v), p.settleSoon(v))
}

// repairFamily brings the devices of the volumes with the given ids in line. These
// volumes were a family when the repair began; LVM2 may have split it, or joined it
// to another, since then. The family's key is held. seen are the family's devices a moment
// ago, if it is a plain volume.
func (p *Pool) repairFamily(ctx context.Context, v *view, ids []lvm2.ID, seen kernel) error {
	if p.isRight(ctx, v, ids, seen) {
		return nil
	}
	of := map[*catalog.Volume]bool{}
	for _, id := range ids {
		if o := v.Volumes.Get(id); o != nil {
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
