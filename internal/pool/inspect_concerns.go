package pool

import (
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
)

// addConcerns adds the concerns of health calls and events that are not findings
// already.
func (r *report) addConcerns(concerns []Concern) {
	for _, c := range concerns {
		where := r.VG
		if c.LV != "" {
			where += "/" + c.LV
		}
		if slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Reason == c.Reason && f.Where == where }) {
			continue
		}
		r.concerns = append(r.concerns, c.Finding(where))
	}
}

// mounted returns the volumes' logical volumes, each with its mount points.
func (i *inspector) mounted(v *view) (map[string][]string, error) {
	mounts, err := mountPoints()
	if err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for _, o := range v.Volumes.All() {
		if o.Deleted {
			continue
		}
		info, err := i.pool.find(v.topDevice(o.LV))
		if err != nil {
			return nil, err
		}
		out[o.LV.Name] = nil
		if info != nil {
			out[o.LV.Name] = mounts[info.Device]
		}
	}
	return out, nil
}

// checkMapped looks for free extents that the kernel's devices map. The driver
// checks the same before it allocates extents.
func (r *report) checkMapped(l *look) error {
	all, err := l.pool.mappings(l.view)
	if err != nil {
		return err
	}
	for _, m := range all {
		if len(catalog.NewRangeSet(m.Range).Intersect(l.view.Free)) > 0 {
			r.Add("ExtentsInUse", m.Device, "they are not allocated; if nothing needs the device, dmsetup remove "+m.Device, "it maps %d extents that LVM2 considers free, as after lvremove of a volume in use", m.Count)
		}
	}
	return nil
}
