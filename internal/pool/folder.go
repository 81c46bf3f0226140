package pool

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	foldPause = 5 * time.Second  // pause between two checks for layers to fold
	foldRetry = 10 * time.Minute // pause before a failed fold is retried
	foldWorth = 4                // most bytes copied for each byte that becomes free
)

// folder reclaims the space of layers that exist only because older layers read
// through them. The next older layer, the heir, takes over the chunks that it
// lacks. The chunks that both layers hold become free. One fold runs at a time.
type folder struct {
	pool    *Pool
	running atomic.Pointer[fold]
	counted map[catalog.FoldPair]foldCount // used by loop only
}

// foldCount is the result of the last attempt to fold a pair.
type foldCount struct {
	foldCost
	failed bool      // the fold failed
	at     time.Time // when the pair was counted, or the fold failed
}

// foldCost is the bytes that a fold copies and frees.
type foldCost struct{ copied, freed size.Bytes }

// worth reports whether a fold pays: it copies at most foldWorth bytes for each
// byte that becomes free. If volumes find no more room, any freed extent is worth
// it.
func (c foldCost) worth(extent size.Bytes, short bool) bool {
	return c.freed >= extent && (short || c.copied/foldWorth <= c.freed)
}

// writes reports whether the store of a frozen layer is being written to.
func (w *folder) writes(id lvm2.ID) bool {
	f := w.running.Load()
	return f != nil && f.Heir == id
}

// folds reports whether a layer is part of the running fold.
func (w *folder) folds(id lvm2.ID) bool {
	f := w.running.Load()
	return f != nil && (f.Heir == id || f.Gone == id)
}

// stop ends the fold in a volume's history and waits until its devices are gone.
// The copied chunks stay, because an heir may hold more than it must. The volume's
// key must not be held. stop returns false if there was no such fold, or if ctx has
// ended.
func (w *folder) stop(ctx context.Context, volume lvm2.ID) bool {
	f := w.running.Load()
	if f == nil || f.Volume != volume {
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

// round folds the pairs that are worth it.
func (w *folder) round(ctx context.Context) {
	v, err := w.pool.latest()
	if err != nil {
		return
	}
	pairs := v.FoldPairs()
	counted := make(map[catalog.FoldPair]foldCount, len(pairs))
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

// due reports whether to try to fold a pair: it was not counted yet, or it is worth
// it, and nobody is using its layers.
func (w *folder) due(v *view, pair catalog.FoldPair) bool {
	heir, gone := v.Layers.Get(pair.Heir), v.Layers.Get(pair.Gone)
	if !heir.Trimmed || !gone.Trimmed {
		return false // their usage is not known yet
	}
	if info, err := w.pool.find(v.snapDevice(heir.LV)); err != nil || info != nil {
		return false // the heir is being read
	}
	c, known := w.counted[pair]
	switch {
	case !known:
		return true
	case c.failed:
		return time.Since(c.at) >= foldRetry
	}
	return c.worth(v.ExtentSize(), w.pool.room(v) == 0)
}

// tryFold counts the cost of a fold, and folds if it is worth it.
func (p *Pool) tryFold(ctx context.Context, pair catalog.FoldPair) (foldCost, error) {
	f := newFold(p, pair)
	ctx = klog.NewContext(ctx, p.log.WithValues("heir", pair.Heir, "layer", pair.Gone))
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
	if !cost.worth(v.ExtentSize(), p.room(v) == 0) {
		return cost, nil
	}
	began := time.Now()
	if err := f.run(ctx); err != nil {
		return cost, err
	}
	p.log.V(2).Info("Folded a layer into its heir", "layer", gone.LV.Name, "heir", heir.LV.Name,
		"copied", cost.copied, "freed", cost.freed, "took", time.Since(began))
	return cost, nil
}
