package lvm2

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Lost returns an error for each device that was found, since the Store was opened,
// with metadata that no interrupted commit explains: the text is damaged, is older by
// more than one commit, or is older than what this Store had written to it. So the
// device was away, failed, or lost writes that it had acknowledged, and logical volumes
// on it may have lost writes too. The next commit rewrites the metadata; Lost continues
// to return the error.
func (s *Store) Lost() []error { return s.last().lost }

func (s *Store) allLost() (errs []error) {
	for _, id := range slices.Sorted(maps.Keys(s.lost)) {
		errs = append(errs, s.lost[id])
	}
	return errs
}

// noteLost looks at metadata areas that were just read. The areas of the last Read or
// Commit are still in s.areas.
func (s *Store) noteLost(vg *VG, members []*disk) {
	for _, p := range members {
		if vg.PVs[vg.PVIndex(p.label.id)].Missing() {
			continue // LVM2 knows that it was away
		}
		for _, a := range p.areas {
			var what string
			switch {
			case errors.Is(a.err, ErrDamaged):
				what = a.err.Error()
			case a.text == nil || a.about.id != vg.ID || a.about.seqno >= vg.Seqno:
				continue
			case a.about.seqno+1 < vg.Seqno, s.written(p, a) > a.about.seqno:
				what = fmt.Sprintf("device %s had metadata with seqno %d instead of %d", p.path, a.about.seqno, max(vg.Seqno, s.written(p, a)))
			default: // a commit was interrupted after it reached another disk
				continue
			}
			s.lost[p.label.id] = fmt.Errorf("%s: it was away, failed, or lost writes that it had acknowledged; logical volumes on it may have lost writes too", what)
		}
	}
}

// written returns the seqno that the last Read or Commit saw in an area, and 0 if there
// was none.
func (s *Store) written(p *disk, a *metadataArea) uint64 {
	for _, former := range s.areas {
		if former.dev.id == p.device.id && former.where == a.where {
			return former.about.seqno
		}
	}
	return 0
}
