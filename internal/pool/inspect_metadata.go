package pool

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// Finding is something that is not as it must be.
type Finding struct {
	Reason string `json:"reason"` // CamelCase, for programs
	Where  string `json:"where"`  // VG/LV, the name of a device, or VG
	What   string `json:"what"`
	Do     string `json:"do"` // what mends it
}

// checks collects what is found in a volume group.
type checks struct {
	vg       string // its name
	findings []Finding
}

func (r *checks) add(reason, where, do, format string, args ...any) {
	r.findings = append(r.findings, Finding{Reason: reason, Where: where, What: fmt.Sprintf(format, args...), Do: do})
}

// at names a logical volume in a finding.
func (r *checks) at(lv *lvm2.LV) string { return r.vg + "/" + lv.Name }

// Advice that many findings share.
const (
	restartDriver = "restart the driver, which brings the devices in line with the metadata when it starts"
	restoreGroup  = "compare the tags with those in /etc/lvm/archive or a vgcfgbackup, and correct them with lvchange --deltag and --addtag"
)

// checkClean returns an error if the tag of the wiped free extents cannot be read,
// or if it is of the current generation and names extents that are not free.
func checkClean(v *view) error {
	for _, t := range v.vg.Tags {
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
		if used := s.subtract(v.free); n == v.vg.Seqno && len(used) > 0 {
			return fmt.Errorf("tag %s names %d extents that are not free", t, used.size())
		}
	}
	return nil
}

// checkMetadata checks our tags and flags, and how layers and volumes refer to each
// other.
func (r *checks) checkMetadata(v *view) {
	names := map[string]string{}
	name := func(kind, csi string, lv *lvm2.LV) {
		if other, taken := names[kind+csi]; taken {
			r.add("DuplicateName", r.at(lv), restoreGroup, "%s name %q is also used by %s/%s", kind, csi, r.vg, other)
		}
		names[kind+csi] = lv.Name
	}
	for _, lv := range v.vg.LVs {
		switch d := v.decoded[lv].(type) {
		case error:
			r.add("BadTags", r.at(lv), restoreGroup, "%v", d)
		case trashed:
			if !inactive(lv) {
				r.add("Unprotected", r.at(lv), protect(r.at(lv)), "LVM2 may activate it, although it was deleted and is not wiped yet")
			}
		case *volume:
			r.checkOdd(lv, d.odd)
			if !d.deleted {
				name("volume", d.name, lv)
			}
			r.checkVolume(v, v.volumes[lv.ID])
		case *layer:
			r.checkOdd(lv, d.odd)
			if d.named {
				name("snapshot", d.name, lv)
			}
			if v.layers[lv.ID] == nil {
				r.add("LayerWithoutVolume", r.at(lv), v.giveUp(lv, d.of), "its volume %s is not in the group", d.of)
				continue
			}
			r.checkLayer(v, v.layers[lv.ID])
		case *flat:
			r.checkOdd(lv, d.odd)
			if !untouchable(lv) || slices.Contains(lv.Status, lvm2.StatusWrite) {
				r.add("Unprotected", r.at(lv), "lvchange -pr "+r.at(lv)+"; "+protect(r.at(lv)), "a flat store must not be writable, and LVM2 must neither activate nor change it")
			}
		}
	}
	r.checkLinks(v)
}

// checkOdd reports a tag that is not understood, and the consequences.
func (r *checks) checkOdd(lv *lvm2.LV, odd error) {
	if odd != nil {
		r.add("BadTags", r.at(lv), restoreGroup, "%v; until this is fixed, nothing in the pool is discarded, folded or wiped", odd)
	}
}

func (r *checks) checkVolume(v *view, o *volume) {
	at := r.at(o.lv)
	if o.apart() && !untouchable(o.lv) {
		r.add("Unprotected", at, protect(at), "LVM2 may activate or change a volume that is deleted or incomplete")
	}
	if o.reading() {
		r.checkReader(v, o)
	}
	if end := o.unknown.subtract(rangeSet{{Count: o.lv.Size()}}); len(end) > 0 {
		r.add("BadTags", at, restoreGroup, "tag %s names %d extents beyond its end", tag(tagUnknown), end.size())
	}
	r.checkFork(v, o)
	if o.deleted && v.disposable(o) {
		r.add("Leftover", at, restartDriver, "it was deleted and no snapshot needs its blocks")
	}
	if k := len(o.layers) - len(v.needed(o)); k > 0 && !o.deleted {
		r.add("Leftover", at, restartDriver, "%d layers of its history are needed by no snapshot", k)
	}
	r.checkOrder(o)
}

// checkOrder checks that the history is complete: only the newest layer is live,
// and the orders have no gap. An lvremove of a layer breaks the history.
func (r *checks) checkOrder(o *volume) {
	if len(o.layers) == 0 || o.theirs() != "" {
		return
	}
	at, lost := r.at(o.lv), "delete the older snapshots, which are lost"
	if o.live() == nil {
		r.add("HistoryBroken", at, lost, "its newest layer %s is not live: a newer one was removed, or the snapshot was split from its origin", o.layers[len(o.layers)-1].lv.Name)
	}
	for k, l := range o.layers[:len(o.layers)-1] {
		newer := o.layers[k+1]
		switch {
		case newer.order == l.order:
			r.add("DuplicateOrder", at, restoreGroup, "the layers %s and %s have the same place %d in the history", l.lv.Name, newer.lv.Name, l.order)
		case o.nextOf(k) == nil:
			r.add("HistoryBroken", at, lost, "the layer that %s (%d) reads through was removed; the next one is %s (%d)", l.lv.Name, l.through, newer.lv.Name, newer.order)
		}
		if l.snap != nil {
			r.add("NotNewestLive", at, restoreGroup, "the layer %s is live but not the newest", l.lv.Name)
		}
	}
}

func (r *checks) checkLayer(v *view, l *layer) {
	at, o := r.at(l.lv), v.volumes[l.of]
	writable := slices.Contains(l.lv.Status, lvm2.StatusWrite)
	if l.snap == nil && (writable || !untouchable(l.lv)) {
		r.add("Unprotected", at, "lvchange -pr "+at+"; "+protect(at), "a frozen layer must not be writable, and LVM2 must neither activate nor change it")
	}
	if l.snap != nil && !writable {
		r.add("NotWritable", at, "lvchange -prw "+at, "the live layer's store must be writable")
	}
	if err := cow.CheckChunk(l.chunk.Bytes()); err != nil {
		r.add("BadTags", at, restoreGroup, "tag %s: %v", tag(tagChunk), err)
	}
	if length := v.bytesOf(o.lv).Sectors(); l.length == 0 || l.length > length {
		r.add("BadTags", at, restoreGroup, "tag %s says %d sectors, but its volume has %d", tag(tagLength), l.length, length)
	}
	if l.exact && l.trimmed && l.bound > l.used {
		r.add("BadTags", at, restoreGroup, "tag %s says %d sectors, but its store uses %d", tag(tagExact), l.bound, l.used)
	}
	if l.trimmed && l.used.Bytes() > v.bytesOf(l.lv) {
		r.add("StoreTooShort", at, "delete the snapshot and the older ones of its volume, which are lost",
			"its store uses %v, but only %v of it are left", l.used.Bytes(), v.bytesOf(l.lv))
	}
}

// checkLinks checks the hidden logical volumes that make a layer a snapshot of its
// volume.
func (r *checks) checkLinks(v *view) {
	for _, hidden := range v.vg.LVs {
		s := snapshotSegment(hidden)
		if s == nil {
			continue
		}
		store := v.vg.LV(s.COWStore)
		if store == nil {
			continue // Validate reports it
		}
		if _, gone := v.decoded[store].(trashed); gone {
			r.add("TrashInUse", r.at(store), "vgcfgrestore a state from before it was deleted, or lvremove "+r.at(store), "our tags say that it is trash, but LVM2 uses it as a snapshot's store")
		}
		l := v.layers[store.ID]
		if l == nil {
			continue
		}
		if of := v.volumes[l.of].lv.Name; s.Origin != of {
			r.add("WrongOrigin", r.at(store), restoreGroup, "LVM2 has it as a snapshot of %s, but our tags say %s", s.Origin, of)
		}
		if s.ChunkSize != l.chunk {
			r.add("WrongChunk", r.at(store), restoreGroup, "LVM2 has a chunk size of %d sectors, but our tags say %d", s.ChunkSize, l.chunk)
		}
	}
}

func protect(at string) string {
	return "start the driver, which protects it, or lvchange --setactivationskip y --setautoactivation n " + at
}
