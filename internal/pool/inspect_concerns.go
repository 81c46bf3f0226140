package pool

import "slices"

// addConcerns adds the concerns of health calls and events that are not findings
// already.
func (r *report) addConcerns(concerns []Concern) {
	for _, c := range concerns {
		where := r.vg
		if c.LV != "" {
			where += "/" + c.LV
		}
		if slices.ContainsFunc(r.findings, func(f Finding) bool { return f.Reason == c.Reason && f.Where == where }) {
			continue
		}
		r.told = append(r.told, c.Finding(where))
	}
}

// mounted returns the volumes' logical volumes, each with its mount points.
func (i *inspector) mounted(v *view) (map[string][]string, error) {
	mounts, err := mountPoints()
	if err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for _, o := range v.volumes {
		if o.deleted {
			continue
		}
		info, err := i.pool.find(v.topDevice(o.lv))
		if err != nil {
			return nil, err
		}
		out[o.lv.Name] = nil
		if info != nil {
			out[o.lv.Name] = mounts[info.Device]
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
		if len(newRangeSet(m.Range).intersect(l.view.free)) > 0 {
			r.add("ExtentsInUse", m.device, "they are not allocated; if nothing needs the device, dmsetup remove "+m.device, "it maps %d extents that LVM2 considers free, as after lvremove of a volume in use", m.Count)
		}
	}
	return nil
}
