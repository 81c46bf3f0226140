package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	foldPause = 5 * time.Second  // between two looks for layers to fold
	foldRetry = 10 * time.Minute // before a fold that failed is tried again
	foldWorth = 4                // bytes that are copied for a byte that becomes free, at most
	foldMost  = 1 << 28          // chunks of a volume: a set of them takes 32 MiB of memory, a fold has some four
)

// folder reclaims the space of layers that are only there because older ones
// read through them. The next older layer, the heir, takes over what it lacks of
// such a layer, and the rest of that becomes free: chunks that both hold. One
// fold runs at a time.
type folder struct {
	pool    *Pool
	running atomic.Pointer[fold]
	counted map[foldPair]foldCount // used by loop only
}

// foldPair is a layer that nobody needs for itself, and the next older one.
type foldPair struct{ volume, heir, gone lvm2.ID }

// foldCount is what is known of a pair.
type foldCount struct {
	foldCost
	failed bool      // to fold them
	at     time.Time // when it was counted, or failed
}

// foldCost is what a fold costs and brings, in bytes.
type foldCost struct{ copied, freed size.Bytes }

// worth says whether a fold pays: no more than foldWorth bytes are copied for
// each that becomes free. Where volumes find no room any more all that becomes
// free is welcome.
func (c foldCost) worth(extent size.Bytes, short bool) bool {
	return c.freed >= extent && (short || c.copied/foldWorth <= c.freed)
}

// writes tells whether the store of a frozen layer is being written to.
func (w *folder) writes(id lvm2.ID) bool {
	f := w.running.Load()
	return f != nil && f.heir == id
}

// folds tells whether a layer is one of the two that are being folded.
func (w *folder) folds(id lvm2.ID) bool {
	f := w.running.Load()
	return f != nil && (f.heir == id || f.gone == id)
}

// stop ends the fold in the history of a volume, if one is under way, and waits until
// its devices are gone. The copied chunks stay: an heir may hold more than it must.
// The volume's key must not be held. false: there was none, or ctx has ended.
func (w *folder) stop(ctx context.Context, volume lvm2.ID) bool {
	f := w.running.Load()
	if f == nil || f.volume != volume {
		return false
	}
	f.cancel(fmt.Errorf("layers of volume %s: %w: an old snapshot is about to be read through them", volume, errFoldOver))
	select {
	case <-f.ended:
		return true
	case <-ctx.Done():
		return false
	}
}

func (w *folder) loop(ctx context.Context) {
	if w.pool.config.NoFolding {
		return
	}
	for tick := time.NewTicker(foldPause); ; {
		select {
		case <-tick.C:
			w.round(ctx)
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}

// round folds what is worth it.
func (w *folder) round(ctx context.Context) {
	v, err := w.pool.latest()
	if err != nil {
		return
	}
	pairs := v.foldPairs()
	counted := make(map[foldPair]foldCount, len(pairs))
	for _, pair := range pairs {
		if c, known := w.counted[pair]; known {
			counted[pair] = c
		}
	}
	w.counted = counted
	for _, pair := range pairs {
		if ctx.Err() != nil {
			return
		}
		if !w.due(v, pair) {
			continue
		}
		cost, err := w.pool.tryFold(ctx, pair)
		switch {
		case err == nil || ctx.Err() != nil:
		case errors.Is(err, errFoldOver):
			w.pool.log.V(2).Info("Layers were not folded", "volumeGroup", w.pool.vgName, "why", err)
		default:
			w.pool.log.Error(err, "Failed to fold layers", "volumeGroup", w.pool.vgName)
		}
		w.counted[pair] = foldCount{foldCost: cost, failed: err != nil, at: time.Now()}
	}
}

// due says whether a pair is to be looked at: it was not yet, or it is worth it,
// and nothing has it in use.
func (w *folder) due(v *view, pair foldPair) bool {
	heir, gone := v.layers[pair.heir], v.layers[pair.gone]
	if !heir.trimmed || !gone.trimmed {
		return false // how much they use is not known yet
	}
	if info, err := w.pool.find(v.snapDevice(heir.lv)); err != nil || info != nil {
		return false // somebody reads it
	}
	c, known := w.counted[pair]
	switch {
	case !known:
		return true
	case c.failed:
		return time.Since(c.at) >= foldRetry
	}
	return c.worth(v.extent(), w.pool.room(v) == 0)
}

// foldPairs returns the layers that can be folded away, each with its heir,
// oldest first.
func (v *view) foldPairs() []foldPair {
	var out []foldPair
	for _, o := range v.volumes {
		needed := v.needed(o)
		for _, gone := range needed {
			if gone.named {
				continue
			}
			if heir := o.reader(needed, gone); heir != nil && v.foldable(o, heir, gone) {
				out = append(out, foldPair{o.lv.ID, heir.lv.ID, gone.lv.ID})
			}
		}
	}
	slices.SortFunc(out, func(a, b foldPair) int {
		return int(int64(v.layers[a.gone].order) - int64(v.layers[b.gone].order))
	})
	return out
}

// foldable says whether gone can be folded into heir, the layer of o that reads
// through it. Both are frozen: the live layer waits for the next cut.
func (v *view) foldable(o *volume, heir, gone *layer) bool {
	return v.unclear == nil && !gone.named && !v.pinned[gone.lv.ID] && !v.flattened[gone.lv.ID] && !v.flattened[heir.lv.ID] && !heir.lost && !gone.lost && o.theirs() == "" &&
		linear(heir.lv) && linear(gone.lv) && heir.snap == nil && gone.snap == nil && o.live() != nil && heir.length/heir.chunk <= foldMost
}

// tryFold counts what a fold would bring and carries it out if it is worth it.
func (p *Pool) tryFold(ctx context.Context, pair foldPair) (foldCost, error) {
	f := newFold(p, pair)
	ctx = klog.NewContext(ctx, p.log.WithValues("heir", pair.heir, "layer", pair.gone))
	if err := f.count(ctx); err != nil {
		return foldCost{}, err
	}
	v, err := p.latest()
	if err != nil {
		return foldCost{}, err
	}
	_, heir, gone, err := f.pair(v)
	if err != nil {
		return foldCost{}, err
	}
	cost := f.cost(v, heir, gone)
	if !cost.worth(v.extent(), p.room(v) == 0) {
		return cost, nil
	}
	began := time.Now()
	if err := f.run(ctx); err != nil {
		return cost, err
	}
	p.log.V(2).Info("Folded a layer into its heir", "layer", gone.lv.Name, "heir", heir.lv.Name,
		"copied", cost.copied, "freed", cost.freed, "took", time.Since(began))
	return cost, nil
}
