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
	has, err := p.allUUIDs()
	if err != nil {
		return Usage{}, err
	}
	u := Usage{Capacity: p.capacity(v), Metadata: p.metadata(v), Unwiped: v.UnwipedFree(), Volumes: v.Named.Len(), Snapshots: v.Snapshots.Len(), Layers: v.Layers.Len()}
	for _, l := range v.Snapshots.All() {
		if v.describeSnapshot(l).Lost {
			u.Lost++
		}
	}
	for _, o := range v.Volumes.All() {
		u.Blocks += v.Taken(o.LV)
		if l := v.Layers.Get(o.CopyOf); l != nil {
			u.Hydrating++
			u.ToHydrate += o.Hydrated.Missing(l.Length).Size().Bytes()
		}
		if o.Fork != nil {
			stored := v.BytesOf(o.Fork.LV)
			used := stored
			if d := v.forkDevice(o.LV); has[d.uuid] {
				if s, err := p.statusSoon(d.name); err == nil && !s.Invalid && !s.Overflow {
					used = min(stored, s.Used.Bytes())
				}
			}
			u.Stores, u.StoresUsed = u.Stores+stored, u.StoresUsed+used
		}
		for _, f := range o.Flats {
			u.Stores, u.StoresUsed = u.Stores+v.BytesOf(f.LV), u.StoresUsed+f.Used.Bytes()
		}
		live := o.Live()
		for _, l := range o.Layers {
			stored := v.BytesOf(l.LV)
			used := stored
			if d := v.snapDevice(l.LV); l == live && !l.Lost && has[d.uuid] {
				if s, err := p.statusSoon(d.name); err == nil && !s.Invalid {
					used = min(stored, s.Used.Bytes())
				}
			}
			u.Stores, u.StoresUsed = u.Stores+stored, u.StoresUsed+used
		}
	}
	for _, lv := range v.Trash {
		if now := p.wiper.beingCleaned.Load(); now == nil || *now != lv.ID {
			u.Trash += v.BytesOf(lv)
		}
	}
	return u, nil
}
