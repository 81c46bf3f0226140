package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// Health returns the problems of a volume. Errors: ErrNotFound.
func (p *Pool) Health(_ context.Context, lv string) ([]Condition, error) {
	v, err := p.latest()
	if err != nil {
		return []Condition{{Inaccessible, "PoolUnavailable", err.Error()}}, nil
	}
	if their := v.TheirLV(lv); their != nil {
		return v.disksOf(their), nil
	}
	o := v.VolumeByLV(lv)
	if o == nil || o.Deleted {
		return nil, fmt.Errorf("volume %s/%s: %w", p.vgName, lv, ErrNotFound)
	}
	return p.volumeConditions(v, o), nil
}

// volumeConditions returns the problems of a volume.
func (p *Pool) volumeConditions(v *view, o *catalog.Volume) []Condition {
	out := append(v.disksOf(o.LV), p.failingHealth(o)...)
	if o.Reading() {
		out = append(out, p.readerHealth(v, o)...)
	}
	for _, l := range v.SnapshotsOf(o) {
		if v.describeSnapshot(l).Lost {
			out = append(out, Condition{Degraded, ReasonSnapshotLost, fmt.Sprintf("snapshot %s is lost: its store or a newer snapshot's store was full, was removed by lvremove or dmsetup, or was lost by a disk; delete it and take a new one", l.Name)})
		}
	}
	for _, l := range o.Layers {
		if why, cramped := p.facts.cramped.get(l.LV.ID); cramped && !l.Lost {
			out = append(out, Condition{Degraded, "SnapshotSpaceLow",
				fmt.Sprintf("the store of the newest snapshot (%v) cannot grow, and once it is full the snapshot is lost: %v", v.BytesOf(l.LV), why)})
		}
	}
	for _, name := range v.Family(o.LV.Name) {
		if why, steep := p.facts.steep.get(v.VolumeByLV(name).LV.ID); steep {
			out = append(out, Condition{Degraded, "SnapshotReadDeep",
				fmt.Sprintf("an old snapshot is read through more than %d devices, which is slow, and too many of them prevent new snapshots of the volume: %v", catalog.FlatLevels, why)})
		}
	}
	if o.Forked() {
		out = append(out, p.forkHealth(v, o)...)
	}
	if p.facts.holding.has(o.LV.ID) {
		out = append(out, Condition{Inaccessible, "WritersHeld", heldBecause})
	}
	return out
}

// forkHealth returns the problems that keep a restored volume from becoming an
// ordinary volume.
func (p *Pool) forkHealth(v *view, o *catalog.Volume) []Condition {
	l, source, err := v.Origin(o)
	if err == nil {
		err = p.intact(v, source, l)
	}
	if errors.Is(err, ErrLost) {
		return []Condition{{DataLoss, "ForkLost", fmt.Sprintf("the volume was not hydrated yet, and the content that it reads through is gone: %v; restore it again", err)}}
	}
	if s, err := p.statusSoon(v.forkDevice(o.LV).name); err == nil && s.Invalid {
		return []Condition{{Inaccessible, "ForkStopped",
			"after an I/O error the kernel stopped the part of the volume that is not hydrated yet; nothing is lost, and the driver restores access in a moment if the disks answer"}}
	}
	if _, err = p.hasTarget(targetMirror); err == nil { // without the target nobody copies, whether or not it was tried
		err = p.hydrator.failure(o.LV.Name)
	}
	if err == nil && len(o.Hydrated.Left) > 0 {
		err = errUncopied
	}
	if err != nil {
		missing := o.Hydrated.Missing(l.Length).Size().Bytes()
		return []Condition{{Degraded, "HydrationFailing",
			fmt.Sprintf("the volume reads through the snapshot that it was restored from, because copying the snapshot fails (%v of %v are not copied) and is retried: %v", missing, l.Length.Bytes(), err)}}
	}
	return nil
}

// disksOf returns a condition if a disk with extents of the logical volume is
// missing.
func (v *view) disksOf(lv *lvm2.LV) []Condition {
	for _, s := range lv.Segments {
		for _, stripe := range s.Stripes {
			if stripe.PV >= 0 && v.VG.PVs[stripe.PV].Missing() {
				return []Condition{v.deviceMissing(v.VG.PVs[stripe.PV])}
			}
		}
	}
	return nil
}

// deviceMissing returns the condition for a missing physical volume, with the
// remedy.
func (v *view) deviceMissing(pv *lvm2.PV) Condition {
	why := fmt.Sprintf("physical volume %s of volume group %s is missing", pv.ID, v.VG.Name)
	switch {
	case pv.Part() != nil:
		why += ": " + catalog.WholeMissing(pv)
	case pv.Device != "":
		why = fmt.Sprintf("physical volume %s is marked as missing although %s has it, because lvm2 changed volume group %s without it; vgextend --restoremissing adds it back", pv.ID, pv.Device, v.VG.Name)
	}
	return Condition{Inaccessible, "DeviceMissing", why}
}

// PoolHealth returns the problems of the pool.
func (p *Pool) PoolHealth(context.Context) []Condition {
	v, err := p.latest()
	if err != nil {
		return []Condition{{Inaccessible, "PoolUnavailable", err.Error()}}
	}
	return p.poolConditions(v)
}

// poolConditions returns the problems of the pool as a whole.
func (p *Pool) poolConditions(v *view) []Condition {
	var out []Condition
	for _, pv := range v.VG.PVs {
		if pv.Missing() {
			out = append(out, v.deviceMissing(pv))
		}
	}
	for _, l := range p.outside.leftOuts() {
		if l.refused {
			out = append(out, Condition{Degraded, "DiskRefused", l.text()})
		}
	}
	out = append(out, p.moduleConditions(v)...)
	if why := v.Mixed(); why != "" {
		out = append(out, Condition{Degraded, "MixedBlockSizes", why})
	}
	for _, what := range p.outside.pretenders() {
		out = append(out, Condition{Degraded, "DuplicateDisk", what})
	}
	for _, disk := range p.Silent() {
		out = append(out, Condition{Inaccessible, "DiskNotAnswering", disk + "; calls that need the disk wait for it, and stores of snapshots cannot grow"})
	}
	for _, problem := range p.vgStore.Problems() {
		out = append(out, Condition{Degraded, "MetadataDegraded", problem.Error()})
	}
	for _, lost := range p.vgStore.Lost() {
		out = append(out, Condition{Degraded, "MetadataDegraded", lost.Error()})
	}
	if err := p.wiper.problem(); err != nil {
		out = append(out, Condition{Degraded, "SpaceNotReclaimed", err.Error()})
	}
	if m := p.metadata(v); m.full() {
		out = append(out, Condition{Degraded, "MetadataFull", p.roomForText(v).Error()})
	}
	if v.Free.Size() == 0 && slices.ContainsFunc(slices.Collect(v.Snapshots.Values()), func(l *catalog.Layer) bool { return !v.describeSnapshot(l).Lost }) {
		out = append(out, Condition{Degraded, "PoolFull",
			"no free extent is left: snapshots whose stores cannot grow will be lost; delete volumes or snapshots, or extend the volume group"})
	}
	for _, m := range p.facts.stillInUse() {
		if m.Unread != nil {
			out = append(out, Condition{Degraded, "ExtentsInUse", fmt.Sprintf(
				"the table of device %s cannot be read (%v), so no free extents of the disk below it are allocated; if nothing needs the device, remove it with dmsetup remove",
				m.Device, m.Unread)})
			continue
		}
		out = append(out, Condition{Degraded, "ExtentsInUse", fmt.Sprintf(
			"device %s still maps %d extents that LVM2 considers free, as after lvremove of a volume in use, so they are not allocated; if nothing needs the device, remove it with dmsetup remove",
			m.Device, m.Count)})
	}
	if v.Unclear != nil && p.wiper.problem() == nil { // otherwise the wiper's problem says it
		out = append(out, Condition{Degraded, "SpaceNotReclaimed", v.NotReclaimed().Error()})
	}
	for _, s := range v.Strange {
		out = append(out, Condition{Degraded, "UnknownTags", s})
	}
	return out
}
