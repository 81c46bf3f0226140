package pool

import "github.com/csi-dmsnap/csi-dmsnap/pkg/size"

// Usage is what a pool contains, and how much room it takes.
type Usage struct {
	Capacity
	Metadata   Metadata
	Volumes    int        // without volumes that only their snapshots keep
	Snapshots  int        // including lost ones
	Lost       int        // part of Snapshots: those whose content is gone
	Layers     int        // stores of snapshots, and of deleted snapshots that others read through
	Blocks     size.Bytes // of volumes, including deleted volumes with snapshots
	Stores     size.Bytes // of all layers, and of volumes that are being hydrated
	StoresUsed size.Bytes // part of Stores that has content; a store that is not active counts in full
	Hydrating  int        // volumes that read through the snapshot that they were restored from
	ToHydrate  size.Bytes // bytes of these volumes that are not copied yet
	Trash      size.Bytes // deleted, not wiped yet
	Unwiped    size.Bytes // free, but perhaps not zeroes
}

// Usage returns how the pool is used.
func (p *Pool) Usage() (Usage, error) {
	v, err := p.latest()
	if err != nil {
		return Usage{}, err
	}
	u := Usage{Capacity: p.capacity(v), Metadata: p.metadata(v), Unwiped: v.unwipedFree(), Volumes: len(v.named), Snapshots: len(v.snapshots), Layers: len(v.layers)}
	for _, l := range v.snapshots {
		if v.describeSnapshot(l).Lost {
			u.Lost++
		}
	}
	for _, o := range v.volumes {
		u.Blocks += v.taken(o.lv)
		if l := v.layers[o.copyOf]; l != nil {
			u.Hydrating++
			u.ToHydrate += o.hydrated.missing(l.length).size().Bytes()
		}
		if o.fork != nil {
			stored := v.bytesOf(o.fork.lv)
			used := stored
			if s, err := p.snapshotStatus(v.forkDevice(o.lv).name); err == nil && !s.Invalid && !s.Overflow {
				used = min(stored, s.Used.Bytes())
			}
			u.Stores, u.StoresUsed = u.Stores+stored, u.StoresUsed+used
		}
		for _, f := range o.flats {
			u.Stores, u.StoresUsed = u.Stores+v.bytesOf(f.lv), u.StoresUsed+f.used.Bytes()
		}
		live := o.live()
		for _, l := range o.layers {
			stored := v.bytesOf(l.lv)
			used := stored
			if l == live && !l.lost {
				if s, err := p.snapshotStatus(v.snapDevice(l.lv).name); err == nil && !s.Invalid {
					used = min(stored, s.Used.Bytes())
				}
			}
			u.Stores, u.StoresUsed = u.Stores+stored, u.StoresUsed+used
		}
	}
	for _, lv := range v.trash {
		if now := p.wiper.beingCleaned.Load(); now == nil || *now != lv.ID {
			u.Trash += v.bytesOf(lv)
		}
	}
	return u, nil
}
