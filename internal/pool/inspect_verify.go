package pool

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// Verification is what Verify found in a pool.
type Verification struct {
	Pool        string    `json:"pool"`
	VolumeGroup string    `json:"volumeGroup"`
	Findings    []Finding `json:"findings"` // inconsistencies, sorted by Where
	Unread      []Unread  `json:"unread"`   // exception stores that could not be read
	// Told is what health calls and events also report, such as a lost snapshot: it
	// need not be an inconsistency. Sorted by Where; without what is in Findings.
	Told []Finding `json:"-"`
	// Volumes are the logical volumes of the volumes, each with its mount points
	// that this process sees. The driver may know more about them.
	Volumes map[string][]string `json:"-"`
}

// Unread is an exception store that was not read.
type Unread struct {
	Where string `json:"where"` // VG/LV
	Why   string `json:"why"`
}

// lookPauses are the pauses before the second and the third look. A running driver may
// be between two steps of a change, for seconds on a busy machine. So only problems that
// all looks find count.
var lookPauses = [...]time.Duration{time.Second, 3 * time.Second}

// Verify checks that the metadata is consistent, that the kernel's devices match
// it, and that the exception stores with active devices can be read. Like Inspect,
// it changes nothing, and may run beside the driver. An error means that Verify
// could not look: ErrUnavailable, or the end of ctx.
func Verify(ctx context.Context, c Config, o Options) (*Verification, error) {
	i, err := newInspector(ctx, c, o, lvm2.FindVGReadOnly)
	if err != nil {
		return nil, err
	}
	defer i.close()
	r, err := i.verify(ctx)
	for _, pause := range lookPauses {
		if err != nil || len(r.Findings)+len(r.concerns) == 0 {
			break
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		before := r
		if r, err = i.verify(ctx); err == nil {
			r.Findings, r.concerns = inBoth(r.Findings, before.Findings), inBoth(r.concerns, before.concerns)
		}
	}
	if err != nil {
		return nil, err
	}
	for _, found := range [][]Finding{r.Findings, r.concerns} {
		slices.SortFunc(found, func(a, b Finding) int {
			return cmp.Or(cmp.Compare(a.Where, b.Where), cmp.Compare(a.Reason, b.Reason))
		})
	}
	slices.SortFunc(r.unread, func(a, b Unread) int { return cmp.Compare(a.Where, b.Where) })
	volumes, err := i.mounted(i.pool.current.Load())
	if err != nil {
		return nil, err
	}
	return &Verification{Pool: i.pool.name, VolumeGroup: i.pool.vgName, Findings: r.Findings, Told: r.concerns, Unread: r.unread, Volumes: volumes}, nil
}

func (i *inspector) verify(ctx context.Context) (*report, error) {
	l, err := i.look(ctx)
	if err != nil {
		return nil, err
	}
	r := &report{Checks: catalog.Checks{VG: l.view.VG.Name, Findings: []Finding{}}, unread: []Unread{}}
	r.checkGroup(l)
	others, err := strangers(ctx, l.view.VG, i.pool.lvDevices())
	if err != nil {
		return nil, err
	}
	for _, what := range others {
		r.Add("DuplicateDisk", l.view.VG.Name, "nothing for the pool, which ignores it; lvm2's commands may need the group's id (--select vg_uuid=...) or a filter", "%s", what)
	}
	if why := l.view.Mixed(); why != "" {
		r.Add("MixedBlockSizes", l.view.VG.Name, "move the volumes to disks of one kind with pvmove, and take the others out with vgreduce", "%s", why)
	}
	for _, left := range i.leftOut(l.view) {
		if left.refused {
			r.Add("DiskRefused", l.view.VG.Name, "use it for another pool, or remove it from devices", "%s", left.text())
		}
	}
	r.checkEntered(l)
	r.CheckMetadata(l.view.View)
	r.checkDevices(l)
	for id, x := range l.view.Layers.All() {
		if x.Lost || l.view.Volumes.Get(x.Of).Theirs() != "" {
			continue // lost, or managed by LVM2
		}
		if l.at(x.LV, "") == nil {
			r.unread = append(r.unread, Unread{r.At(x.LV), notActive})
		} else if err := i.checkStore(ctx, id, r); err != nil {
			return nil, err
		}
	}
	if err := r.checkMapped(l); err != nil {
		return nil, err
	}
	r.addConcerns(i.pool.concerns(l.view))
	return r, nil
}

// checkEntered checks that LVM2's commands see the group's disks.
func (r *report) checkEntered(l *look) {
	for _, pv := range l.view.VG.PVs {
		if pv.Device == "" {
			continue
		}
		switch in, err := l.pool.host.Entered(pv.Device, pv.ID); {
		case err != nil:
			r.Add("NotInDevicesFile", r.VG, "see lvmdevices", "cannot tell whether lvm2's commands see %s: %v", pv.Device, err)
		case !in:
			r.Add("NotInDevicesFile", r.VG, "lvmdevices --adddev "+pv.Device, "lvm2's commands do not see %s, because it is not in the devices file %s", pv.Device, l.pool.host.DevicesFile)
		}
	}
}

// leftOut returns the devices that match the configuration, but cannot be added to
// the group.
func (i *inspector) leftOut(v *view) []LeftOut {
	if !i.pool.config.Create {
		return nil
	}
	fit, left, err := i.pool.config.choose(v.VG)
	if err != nil {
		return []LeftOut{{Why: err.Error()}}
	}
	for _, d := range fit {
		left = append(left, LeftOut{Device: d, Why: "it is blank; the driver adds it at its next look, unless a disk of the volume group is missing"})
	}
	return left
}

// report collects the findings.
type report struct {
	catalog.Checks
	concerns []Finding
	unread   []Unread
}

// inBoth returns the findings that an earlier look found too.
func inBoth(found, earlier []Finding) []Finding {
	return slices.DeleteFunc(found, func(f Finding) bool {
		return !slices.ContainsFunc(earlier, func(e Finding) bool { return e.Reason == f.Reason && e.Where == f.Where })
	})
}

// checkGroup checks the group by LVM2's own rules, and that its extents add up.
func (r *report) checkGroup(l *look) {
	vg := l.view.VG
	for _, err := range l.problems {
		r.Add("MetadataDegraded", vg.Name, "any change of the volume group rewrites old or damaged metadata; otherwise see vgck "+vg.Name, "%v", err)
	}
	if err := vg.Validate(); err != nil {
		r.Add("MetadataInvalid", vg.Name, "see vgck "+vg.Name+"; vgcfgrestore restores an older state", "%v", err)
	}
	foreignTypes := false // the extents that these use are unknown
	used := map[int]lvm2.Extents{}
	for _, lv := range vg.LVs {
		for _, s := range lv.Segments {
			foreignTypes = foreignTypes || s.Type != lvm2.TypeStriped && s.Type != lvm2.TypeSnapshot && s.Type != lvm2.TypeError
			for _, stripe := range s.Stripes {
				if stripe.PV >= 0 {
					used[stripe.PV] += s.Count / lvm2.Extents(len(s.Stripes))
				}
			}
		}
	}
	for n, pv := range vg.PVs {
		switch {
		case pv.Part() != nil:
			r.Add("DiskMissing", vg.Name, "bring it back, with multipath -r if it is a map", "physical volume %s is missing: %s", pv.ID, catalog.WholeMissing(pv))
		case pv.Missing():
			r.Add("DiskMissing", vg.Name, "attach its disk, or abandon it with vgreduce --removemissing "+vg.Name, "physical volume %s is missing", pv.ID)
		}
		if !pv.Allocatable() || foreignTypes {
			continue
		}
		free := l.view.Free.Intersect(catalog.RangeSet{{PV: n, Count: pv.PECount}}).Size()
		if used[n]+free != pv.PECount {
			r.Add("ExtentsDoNotAddUp", vg.Name, "see vgck "+vg.Name+" and pvs --segments: two logical volumes may have the same extents",
				"%s has %d extents, but logical volumes use %d and %d are free", pv.Device, pv.PECount, used[n], free)
		}
	}
	if err := catalog.CheckClean(l.view.View); err != nil {
		r.Add("BadTags", vg.Name, "remove the tag with vgchange --deltag; the extents are then wiped again", "%v", err)
	}
}
