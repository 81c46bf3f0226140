package pool

import (
	"context"
	"fmt"
)

// Subject is the kind of object that a Concern is about.
type Subject int

// The subjects.
const (
	OfPool Subject = iota
	OfVolume
	OfSnapshot
)

// Concern is a problem of a pool, or of a volume or snapshot in it.
type Concern struct {
	Subject Subject
	LV      string // the volume's or snapshot's logical volume; "" for the pool
	Condition
}

// ReasonSnapshotLost is a concern of the snapshot itself, and also appears in its
// volume's health.
const ReasonSnapshotLost = "SnapshotLost"

// Concerns returns all problems. It is the only list behind the health calls, the
// events and Verify: a problem that is not in it is reported nowhere.
func (p *Pool) Concerns(context.Context) []Concern {
	v, err := p.latest()
	if err != nil {
		return []Concern{{Condition: Condition{Inaccessible, "PoolUnavailable", err.Error()}}}
	}
	return p.concerns(v)
}

func (p *Pool) concerns(v *view) []Concern {
	var out []Concern
	add := func(s Subject, lv string, conditions ...Condition) {
		for _, c := range conditions {
			out = append(out, Concern{s, lv, c})
		}
	}
	add(OfPool, "", p.poolConditions(v)...)
	for _, lv := range v.VG.LVs { // in the order of the metadata
		if l := v.Layers.Get(lv.ID); l != nil && l.Named && v.describeSnapshot(l).Lost {
			add(OfSnapshot, lv.Name, Condition{Degraded, ReasonSnapshotLost, fmt.Sprintf(
				"the content of snapshot %s is lost, but the volume is unharmed: its store or a newer snapshot's store was full, was removed by lvremove or dmsetup, or was lost by a disk; delete the snapshot and take a new one", l.Name)})
		}
		if o := v.Volumes.Get(lv.ID); o != nil && !o.Deleted {
			for _, c := range p.volumeConditions(v, o) {
				if c.Reason != ReasonSnapshotLost {
					add(OfVolume, lv.Name, c)
				}
			}
		}
	}
	return out
}
