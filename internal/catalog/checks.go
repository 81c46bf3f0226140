package catalog

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// checkFork checks a fork's tags and store.
func (r *Checks) checkFork(v *View, o *Volume) {
	if !o.Forked() {
		return
	}
	at := r.At(o.LV)
	l := v.Layers.Get(o.CopyOf)
	if l == nil {
		r.Add("CopySourceMissing", at, "delete the volume and restore it again", "the layer %s that it reads through is gone", o.CopyOf)
		return
	}
	if h := o.Hydrated; h.To > l.Length || len(h.Missing(l.Length)) == 0 {
		r.Add("BadTags", at, RestoreGroup, "tag %s says %v sectors, but the snapshot that it reads through has %d", Tag(tagHydrated), o.Hydrated, l.Length)
	}
	if o.Fork == nil {
		r.Add("ForkStoreMissing", at, "delete the volume and restore it again", "the store that holds its writes is gone")
		return
	}
	store := r.At(o.Fork.LV)
	if !Untouchable(o.Fork.LV) {
		r.Add("Unprotected", store, protect(store), "LVM2 may activate or change the store of a volume that is not hydrated")
	}
	if err := cow.CheckChunk(o.Fork.Chunk.Bytes()); err != nil {
		r.Add("BadTags", store, RestoreGroup, "tag %s: %v", Tag(tagChunk), err)
	}
}

// Finding is a problem that a check of a pool has found.
type Finding struct {
	Reason string `json:"reason"` // CamelCase, for programs
	Where  string `json:"where"`  // VG/LV, the name of a device, or VG
	What   string `json:"what"`
	Do     string `json:"do"` // how to fix it
}

// Checks collects the findings of a volume group.
type Checks struct {
	VG       string // its name
	Findings []Finding
}

// Add adds a finding. where names its subject, and do says how to fix it.
func (r *Checks) Add(reason, where, do, format string, args ...any) {
	r.Findings = append(r.Findings, Finding{Reason: reason, Where: where, What: fmt.Sprintf(format, args...), Do: do})
}

// At names a logical volume in a finding.
func (r *Checks) At(lv *lvm2.LV) string { return r.VG + "/" + lv.Name }

// Advice that many findings share.
const (
	RestartDriver = "restart the driver, which brings the devices in line with the metadata when it starts"
	RestoreGroup  = "compare the tags with those in /etc/lvm/archive or a vgcfgbackup, and correct them with lvchange --deltag and --addtag"
)

// CheckClean returns an error if the tag of the wiped free extents cannot be read,
// or if it is of the current generation and names extents that are not free.
func CheckClean(v *View) error {
	for _, t := range v.VG.Tags {
		rest, ours := strings.CutPrefix(t, tagPrefix+tagClean+"=")
		if !ours {
			continue
		}
		text, err := decodeTag(rest)
		if err != nil {
			return err
		}
		seqno, ranges, _ := strings.Cut(text, "/")
		n, err := strconv.ParseUint(seqno, 10, 64)
		if err != nil {
			return fmt.Errorf("tag %s: it does not begin with a generation number", t)
		}
		s, err := parseRangeSet(ranges)
		if err != nil {
			return fmt.Errorf("tag %s: %w", t, err)
		}
		if used := s.Subtract(v.Free); n == v.VG.Seqno && len(used) > 0 {
			return fmt.Errorf("tag %s names %d extents that are not free", t, used.Size())
		}
	}
	return nil
}

// CheckMetadata checks our tags and flags, and how layers and volumes refer to each
// other.
func (r *Checks) CheckMetadata(v *View) {
	names := map[string]string{}
	name := func(kind, csi string, lv *lvm2.LV) {
		if other, taken := names[kind+csi]; taken {
			r.Add("DuplicateName", r.At(lv), RestoreGroup, "%s name %q is also used by %s/%s", kind, csi, r.VG, other)
		}
		names[kind+csi] = lv.Name
	}
	for _, lv := range v.VG.LVs {
		switch d := v.form(lv).(type) {
		case error:
			r.Add("BadTags", r.At(lv), RestoreGroup, "%v", d)
		case trashed:
			if !inactive(lv) {
				r.Add("Unprotected", r.At(lv), protect(r.At(lv)), "LVM2 may activate it, although it was deleted and is not wiped yet")
			}
		case *Volume:
			r.checkOdd(lv, d.Odd)
			if !d.Deleted {
				name("volume", d.Name, lv)
			}
			r.checkVolume(v, v.Volumes.Get(lv.ID))
		case *Layer:
			r.checkOdd(lv, d.odd)
			if d.Named {
				name("snapshot", d.Name, lv)
			}
			if v.Layers.Get(lv.ID) == nil {
				r.Add("LayerWithoutVolume", r.At(lv), v.giveUp(lv, d.Of), "its volume %s is not in the group", d.Of)
				continue
			}
			r.checkLayer(v, v.Layers.Get(lv.ID))
		case *Flat:
			r.checkOdd(lv, d.odd)
			if !Untouchable(lv) || slices.Contains(lv.Status, lvm2.StatusWrite) {
				r.Add("Unprotected", r.At(lv), "lvchange -pr "+r.At(lv)+"; "+protect(r.At(lv)), "a flat store must not be writable, and LVM2 must neither activate nor change it")
			}
		}
	}
	r.checkLinks(v)
}

// checkOdd reports a tag that is not understood, and the consequences.
func (r *Checks) checkOdd(lv *lvm2.LV, odd error) {
	if odd != nil {
		r.Add("BadTags", r.At(lv), RestoreGroup, "%v; until this is fixed, nothing in the pool is discarded, folded or wiped", odd)
	}
}

func (r *Checks) checkVolume(v *View, o *Volume) {
	at := r.At(o.LV)
	if o.apart() && !Untouchable(o.LV) {
		r.Add("Unprotected", at, protect(at), "LVM2 may activate or change a volume that is deleted or incomplete")
	}
	if o.Reading() {
		r.checkReader(v, o)
	}
	if end := o.Unknown.Subtract(RangeSet{{Count: o.LV.Size()}}); len(end) > 0 {
		r.Add("BadTags", at, RestoreGroup, "tag %s names %d extents beyond its end", Tag(tagUnknown), end.Size())
	}
	r.checkFork(v, o)
	if o.Deleted && v.Disposable(o) {
		r.Add("Leftover", at, RestartDriver, "it was deleted and no snapshot needs its blocks")
	}
	if k := len(o.Layers) - len(v.Needed(o)); k > 0 && !o.Deleted {
		r.Add("Leftover", at, RestartDriver, "%d layers of its history are needed by no snapshot", k)
	}
	r.checkOrder(o)
}

// checkOrder checks that the history is complete: only the newest layer is live,
// and the orders have no gap. An lvremove of a layer breaks the history.
func (r *Checks) checkOrder(o *Volume) {
	if len(o.Layers) == 0 || o.Theirs() != "" {
		return
	}
	at, lost := r.At(o.LV), "delete the older snapshots, which are lost"
	if o.Live() == nil {
		r.Add("HistoryBroken", at, lost, "its newest layer %s is not live: a newer one was removed, or the snapshot was split from its origin", o.Layers[len(o.Layers)-1].LV.Name)
	}
	for k, l := range o.Layers[:len(o.Layers)-1] {
		newer := o.Layers[k+1]
		switch {
		case newer.Order == l.Order:
			r.Add("DuplicateOrder", at, RestoreGroup, "the layers %s and %s have the same place %d in the history", l.LV.Name, newer.LV.Name, l.Order)
		case o.NextOf(k) == nil:
			r.Add("HistoryBroken", at, lost, "the layer that %s (%d) reads through was removed; the next one is %s (%d)", l.LV.Name, l.Through, newer.LV.Name, newer.Order)
		}
		if l.Snap != nil {
			r.Add("NotNewestLive", at, RestoreGroup, "the layer %s is live but not the newest", l.LV.Name)
		}
	}
}

func (r *Checks) checkLayer(v *View, l *Layer) {
	at, o := r.At(l.LV), v.Volumes.Get(l.Of)
	writable := slices.Contains(l.LV.Status, lvm2.StatusWrite)
	if l.Snap == nil && (writable || !Untouchable(l.LV)) {
		r.Add("Unprotected", at, "lvchange -pr "+at+"; "+protect(at), "a frozen layer must not be writable, and LVM2 must neither activate nor change it")
	}
	if l.Snap != nil && !writable {
		r.Add("NotWritable", at, "lvchange -prw "+at, "the live layer's store must be writable")
	}
	if err := cow.CheckChunk(l.Chunk.Bytes()); err != nil {
		r.Add("BadTags", at, RestoreGroup, "tag %s: %v", Tag(tagChunk), err)
	}
	if length := v.BytesOf(o.LV).Sectors(); l.Length == 0 || l.Length > length {
		r.Add("BadTags", at, RestoreGroup, "tag %s says %d sectors, but its volume has %d", Tag(tagLength), l.Length, length)
	}
	if l.Exact && l.Trimmed && l.Bound > l.Used {
		r.Add("BadTags", at, RestoreGroup, "tag %s says %d sectors, but its store uses %d", Tag(tagExact), l.Bound, l.Used)
	}
	if l.Trimmed && l.Used.Bytes() > v.BytesOf(l.LV) {
		r.Add("StoreTooShort", at, "delete the snapshot and the older ones of its volume, which are lost",
			"its store uses %v, but only %v of it are left", l.Used.Bytes(), v.BytesOf(l.LV))
	}
}

// checkLinks checks the hidden logical volumes that make a layer a snapshot of its
// volume.
func (r *Checks) checkLinks(v *View) {
	for _, hidden := range v.VG.LVs {
		s := SnapshotSegment(hidden)
		if s == nil {
			continue
		}
		store := v.VG.LV(s.COWStore)
		if store == nil {
			continue // Validate reports it
		}
		if _, gone := v.form(store).(trashed); gone {
			r.Add("TrashInUse", r.At(store), "vgcfgrestore a state from before it was deleted, or lvremove "+r.At(store), "our tags say that it is trash, but LVM2 uses it as a snapshot's store")
		}
		l := v.Layers.Get(store.ID)
		if l == nil {
			continue
		}
		if of := v.Volumes.Get(l.Of).LV.Name; s.Origin != of {
			r.Add("WrongOrigin", r.At(store), RestoreGroup, "LVM2 has it as a snapshot of %s, but our tags say %s", s.Origin, of)
		}
		if s.ChunkSize != l.Chunk {
			r.Add("WrongChunk", r.At(store), RestoreGroup, "LVM2 has a chunk size of %d sectors, but our tags say %d", s.ChunkSize, l.Chunk)
		}
	}
}

func protect(at string) string {
	return "start the driver, which protects it, or lvchange --setactivationskip y --setautoactivation n " + at
}

// checkReader checks a volume that shows a snapshot.
func (r *Checks) checkReader(v *View, o *Volume) {
	at := r.At(o.LV)
	l, _, err := v.ReadFrom(o)
	switch length := v.BytesOf(o.LV).Sectors(); {
	case err != nil:
		r.Add("CopySourceMissing", at, "delete the volume and restore it again", "the layer %s that it shows is gone", o.Reads)
	case l.Length != length:
		r.Add("BadTags", at, RestoreGroup, "it has %d sectors, but the snapshot that it shows has %d", length, l.Length)
	}
	if o.Transient && (o.Chunk.Bytes() < cow.MinChunk || o.Chunk&(o.Chunk-1) != 0) {
		r.Add("BadTags", at, RestoreGroup, "tag %s has an invalid chunk size of %d sectors", Tag(tagChunk), o.Chunk)
	}
	if !o.Transient && !ReadOnlyLV(o.LV) {
		r.Add("Unprotected", at, "lvchange -pr "+at, "it is writable, but must be read-only")
	}
}
