package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

const lastRewrite = time.Minute // between two attempts to rewrite old metadata

// diskOf returns the device on which a physical volume was found. The driver keeps the
// number, because the path may lead to another device later: when a multipath map fails,
// udev moves its links to one of its paths.
func diskOf(pv *lvm2.PV) dm.Device {
	major, minor := pv.Number()
	return dm.Device{Major: major, Minor: minor}
}

// pathsBelow lists the devices below the device of a physical volume, such as the paths of
// a multipath map.
func pathsBelow(pv *lvm2.PV) (paths []dm.Device) {
	slaves, _ := filepath.Glob(fmt.Sprintf("/sys/dev/block/%v/slaves/*/dev", diskOf(pv)))
	for _, s := range slaves {
		text, _ := os.ReadFile(s) // skip a path that has just been removed
		if dev, err := dm.ParseDevice(strings.TrimSpace(string(text))); err == nil {
			paths = append(paths, dev)
		}
	}
	return paths
}

// openDisk opens the device on which a physical volume was found. Errors: ErrUnavailable if
// the path leads to another device now.
func openDisk(pv *lvm2.PV, flags int) (*os.File, error) {
	f, err := os.OpenFile(pv.Device, flags, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err == nil {
		if now := (dm.Device{Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev)}); now != diskOf(pv) {
			err = fmt.Errorf("%w: %s is now device %v, but the physical volume was found on %v; the driver searches for it again", ErrUnavailable, pv.Device, now, diskOf(pv))
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// disksMoved marks as unsettled all volumes on a disk whose device number has changed since
// the former view, and the volumes of the same families.
func (g *group) disksMoved(former, v *view) {
	moved := map[int]bool{}
	for i, pv := range v.VG.PVs {
		if k := former.VG.PVIndex(pv.ID); k >= 0 && pv.Device != "" && !pv.SameDevice(former.VG.PVs[k]) {
			g.log.Info("A physical volume moved to another device", "volumeGroup", v.VG.Name, "pv", pv.ID, "before", diskOf(former.VG.PVs[k]), "now", diskOf(pv), "path", pv.Device)
			moved[i] = true
		}
	}
	if len(moved) == 0 {
		return
	}
	roots := map[string]bool{}
	for _, o := range v.Volumes.All() {
		for _, lv := range o.Parts() {
			for _, s := range lv.Segments {
				for _, stripe := range s.Stripes {
					if moved[stripe.PV] {
						roots[v.Root(o.LV.Name)] = true
					}
				}
			}
		}
	}
	for id, o := range v.Volumes.All() {
		if roots[v.Root(o.LV.Name)] {
			g.facts.unsettled.put(id, true)
		}
	}
}

// rewriter rewrites metadata areas that missed commits, because their disk was away or
// failed.
type rewriter struct {
	group *group
	next  time.Time
	wait  time.Duration
}

// rewrite commits the metadata again if areas are out of date. After a failure it waits
// before it retries.
func (r *rewriter) rewrite(ctx context.Context) {
	v, err := r.group.latest()
	if err != nil || !r.group.vgStore.Stale() {
		r.wait = 0
		return
	}
	if v.Writable() != nil || time.Now().Before(r.next) {
		return
	}
	err = r.group.do(ctx, &change{what: "rewrite the metadata of volume group " + r.group.vgName, edit: func(t *edit) error {
		t.Changed = true
		return nil
	}})
	if err != nil && ctx.Err() == nil {
		r.group.log.Error(err, "Failed to update metadata areas that are out of date", "problems", r.group.vgStore.Problems())
	}
	r.wait = min(max(refreshPause, 2*r.wait), lastRewrite)
	r.next = time.Now().Add(r.wait)
}
