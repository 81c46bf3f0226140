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
	reportEvery = 10 * time.Second // between two looks at the health of all
	deedNews    = 24 * time.Hour   // for how long what somebody did is news
	reportAgain = 10 * time.Minute // until the same thing is told again, if it went away in between
)

// concern identifies what is wrong, whatever the words.
type concern struct {
	kind       roleapi.Happening_Kind
	id, reason string
}

// Report tells what goes wrong with the pools, volumes and snapshots of this
// node, as the health calls of CSI see it, until ctx ends. In Kubernetes nobody
// asks again whether a snapshot is well that was ready once.
func (d *Driver) Report(ctx context.Context, tell func(context.Context, reports.Happening)) {
	known := map[concern]time.Time{} // since when it is told, or when it was last seen
	trash, deeds := map[string]size.Bytes{}, map[pool.Deed]bool{}
	tick := time.NewTicker(reportEvery)
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

// reportNew tells what is wrong now and was not when it looked before.
func (d *Driver) reportNew(ctx context.Context, known map[concern]time.Time, now time.Time, tell func(context.Context, reports.Happening)) {
	for _, h := range d.concerns(ctx) {
		c := concern{h.Kind, h.ID, h.Reason}
		if _, told := known[c]; !told {
			tell(ctx, h)
		}
		known[c] = now
	}
	for c, seen := range known {
		// What comes and goes, as around a threshold, is told once in a while.
		if now.Sub(seen) >= reportAgain {
			delete(known, c)
		}
	}
}

// reportWiped tells that what was deleted is wiped and its space free again, where that took
// so long that somebody may wait for it. trash is how much there was at most, by pool.
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

// reportDeeds tells what people did with volumes by commands, which may have run beside the
// driver or before it. known is what was told.
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
			if known[deed] || now.Sub(deed.At) > deedNews {
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

// kinds are what happenings call the subjects of concerns.
var kinds = map[pool.Subject]roleapi.Happening_Kind{
	pool.OfPool: roleapi.Happening_KIND_POOL, pool.OfVolume: roleapi.Happening_KIND_VOLUME, pool.OfSnapshot: roleapi.Happening_KIND_SNAPSHOT,
}

// concerns lists what is wrong now.
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

// mergeConcerns joins the concerns of one subject and reason: people are told once.
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
