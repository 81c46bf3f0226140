package driver

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/internal/reports"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	reportInterval = 10 * time.Second // between two checks of the health of the node
	deedMaxAge     = 24 * time.Hour   // older deeds are not reported
	repeatAfter    = 10 * time.Minute // a fault that went away for so long is reported again
)

// concern identifies a fault independently of its message.
type concern struct {
	kind       roleapi.Happening_Kind
	id, reason string
}

// Report calls tell for every new fault of the pools, volumes and snapshots of
// this node, until ctx ends. The faults are those of the health calls of CSI.
// Kubernetes needs reports because it never checks a ready snapshot again. Report
// calls tell from one goroutine.
func (d *Driver) Report(ctx context.Context, tell func(context.Context, reports.Happening)) {
	known := map[concern]time.Time{} // reported faults, to the time when they were last seen
	trash, deeds := map[string]size.Bytes{}, map[pool.Deed]bool{}
	tick := time.NewTicker(reportInterval)
	defer tick.Stop()
	for {
		d.reportNew(ctx, known, time.Now(), tell)
		d.reportWiped(ctx, trash, tell)
		d.reportDeeds(ctx, deeds, time.Now(), tell)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// reportNew reports the faults that are not known yet. known has the time when
// each fault was last seen.
func (d *Driver) reportNew(ctx context.Context, known map[concern]time.Time, now time.Time, tell func(context.Context, reports.Happening)) {
	for _, h := range d.concerns(ctx) {
		c := concern{h.Kind, h.ID, h.Reason}
		if _, told := known[c]; !told {
			tell(ctx, h)
		}
		known[c] = now
	}
	for c, seen := range known {
		// A fault that comes and goes, as around a threshold, is not reported each time.
		if now.Sub(seen) >= repeatAfter {
			delete(known, c)
		}
	}
}

// reportWiped reports that deleted volumes and snapshots are wiped and their
// space is free again, if that took so long that somebody may wait for it. trash
// has the largest number of bytes seen since, by pool.
func (d *Driver) reportWiped(ctx context.Context, trash map[string]size.Bytes, tell func(context.Context, reports.Happening)) {
	for _, name := range d.pools.Names() {
		p, err := d.pool(name)
		if err != nil {
			continue
		}
		u, err := p.Usage()
		if err != nil {
			continue
		}
		if most := trash[name]; most > 0 && u.Trash == 0 {
			tell(ctx, reports.Happening{Kind: roleapi.Happening_KIND_POOL, ID: name, Reason: "SpaceReclaimed",
				Message: fmt.Sprintf("%v of deleted volumes and snapshots are wiped and free again", most)})
		}
		trash[name] = max(trash[name], u.Trash)
		if u.Trash == 0 {
			delete(trash, name)
		}
	}
}

// reportDeeds reports what users did to volumes by commands. A command may have
// run beside the driver or before the driver started. known has the deeds that
// were reported.
func (d *Driver) reportDeeds(ctx context.Context, known map[pool.Deed]bool, now time.Time, tell func(context.Context, reports.Happening)) {
	for _, name := range d.pools.Names() {
		p, err := d.pool(name)
		if err != nil {
			continue
		}
		deeds, err := p.Deeds()
		if err != nil {
			continue
		}
		for _, deed := range deeds {
			if known[deed] || now.Sub(deed.At) > deedMaxAge {
				continue
			}
			known[deed] = true
			tell(ctx, reports.Happening{
				Kind: roleapi.Happening_KIND_VOLUME, ID: d.id(p, deed.LV), Reason: deed.Reason, Lasting: true,
				Message: fmt.Sprintf("%s: %s", deed.At.Format(time.RFC3339), deed.What),
			})
		}
	}
}

// kinds maps the subjects of concerns to the kinds of happenings.
var kinds = map[pool.Subject]roleapi.Happening_Kind{
	pool.OfPool: roleapi.Happening_KIND_POOL, pool.OfVolume: roleapi.Happening_KIND_VOLUME, pool.OfSnapshot: roleapi.Happening_KIND_SNAPSHOT,
}

// concerns returns the faults that exist now.
func (d *Driver) concerns(ctx context.Context) []reports.Happening {
	var all []reports.Happening
	mounts, err := d.stagedFilesystems()
	if err != nil {
		klog.FromContext(ctx).Error(err, "Failed to check the health of file systems")
	}
	for _, name := range d.pools.Names() {
		var concerns []pool.Concern
		p, err := d.pool(name)
		if err == nil {
			concerns = append(p.Concerns(ctx), d.useConcerns(ctx, p, mounts)...)
		} else {
			for _, c := range unusable(err) {
				concerns = append(concerns, pool.Concern{Condition: c})
			}
		}
		for _, c := range mergeConcerns(concerns) {
			id := name
			if c.Subject != pool.OfPool {
				id = d.id(p, c.LV)
			}
			all = append(all, reports.Happening{
				Kind: kinds[c.Subject], ID: id, Reason: c.Reason, Message: c.Message, Warning: true, Lasting: c.Subject == pool.OfSnapshot,
			})
		}
	}
	return all
}

// mergeConcerns joins concerns of the same subject and reason, so that users see
// one event.
func mergeConcerns(all []pool.Concern) []pool.Concern {
	type key struct {
		subject    pool.Subject
		lv, reason string
	}
	var out []pool.Concern
	at := map[key]int{}
	for _, c := range all {
		k := key{c.Subject, c.LV, c.Reason}
		if i, there := at[k]; there {
			out[i].Message += "; " + c.Message
			continue
		}
		at[k] = len(out)
		out = append(out, c)
	}
	return out
}
