package pool

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Cleaning tells when extents of unknown content, as all of a new pool are, are
// wiped. What a block device would show of them is wiped before that whatever is chosen.
type Cleaning string

// When to clean. The zero value is CleanBackground on disks that zero by
// themselves, and CleanNever on others.
const (
	CleanBackground Cleaning = "background" // all that is free, a piece at a time while the disks are idle, and the rest as with CleanFirstUse
	CleanFirstUse   Cleaning = "first-use"  // all of a volume when it is first staged
	CleanNever      Cleaning = "never"      // of a file system's volume what it must not find
)

const (
	cleanAfter = 30 * time.Second // since the pool was opened, or somebody else freed extents
	cleanLook  = 10 * time.Second // between two looks whether there is something to clean
	cleanStep  = 64 * size.MiB    // that is cleaned at least, so that few commits are made
	cleanPart  = 4                // of what is free that is cleaned at most: it is not free meanwhile
)

// cleanable returns the extents, of any state, that are cleaned by the
// configuration before somebody has them.
func (p *Pool) cleanable(v *view) rangeSet {
	switch p.config.Clean {
	case CleanBackground, CleanFirstUse:
		return v.disksOn(anyKind)
	case CleanNever:
		return nil
	}
	var out []lvm2.Range
	for n, pv := range v.vg.PVs {
		if !pv.Missing() && zeroesItself(diskOf(pv)) {
			out = append(out, lvm2.Range{PV: n, Count: pv.PECount})
		}
	}
	return newRangeSet(out...)
}

// zeroesItself tells whether a disk makes zeroes of any length without being
// written to: it unmaps, or is no disk that turns.
func zeroesItself(dev dm.Device) bool {
	limit := func(name string) (n uint64) {
		for _, at := range []string{"", "../"} { // a partition has its disk's
			if text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%v/%squeue/%s", dev, at, name)); err == nil {
				n, _ = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64) // 0 is the cautious answer
				return n
			}
		}
		return 0
	}
	return limit("write_zeroes_max_bytes") > 0 && (limit("rotational") == 0 || limit("discard_max_bytes") > 0)
}

// dirty returns the free extents that are to be cleaned in the background.
func (p *Pool) dirty(v *view) rangeSet {
	if p.config.Clean == CleanFirstUse {
		return nil
	}
	return v.free.subtract(v.clean).intersect(p.cleanable(v))
}

// unwipedFree is how much of what is free is not known to hold zeroes.
func (v *view) unwipedFree() size.Bytes {
	return size.Bytes(v.free.subtract(v.clean).size()) * v.extent()
}

// cleaning is what the configuration comes to on the group's disks.
func (p *Pool) cleaning(v *view) Cleaning {
	switch {
	case p.config.Clean != "":
		return p.config.Clean
	case len(p.cleanable(v)) > 0:
		return CleanBackground
	}
	return CleanNever
}

// atFirstUse returns the logical extents of lv that are wiped before it is used,
// whatever it is used for.
func (p *Pool) atFirstUse(v *view, lv *lvm2.LV) rangeSet {
	has, err := physical(lv)
	if err != nil {
		return nil
	}
	return rangeSet{{Count: lv.Size()}}.subtract(logicalOutside(p.cleanable(v), 0, has))
}

// cleaner wipes free extents of unknown content in the background: a piece of
// them becomes trash, which LVM2 leaves alone and the wiper frees as clean, or after
// an interruption the next process's. It works when neither hydration nor the
// volumes' users need the disks.
type cleaner struct {
	pool  *Pool
	pace  pace
	seen  rangeSet // to be cleaned, at the last look
	since time.Time
}

func (p *Pool) cleanLoop(ctx context.Context) {
	c := cleaner{pool: p, pace: pace{pool: p}}
	for {
		wait, err := c.step(ctx)
		if err != nil && ctx.Err() == nil {
			p.log.Error(err, "Failed to clean free extents in the background", "volumeGroup", p.vgName, "retryAfter", cleanLook)
			wait = cleanLook
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// due returns how long to wait until something is to be cleaned.
func (c *cleaner) due(v *view) time.Duration {
	dirty := c.pool.dirty(v)
	if more := dirty.subtract(c.seen); len(more) > 0 {
		c.since = time.Now() // whoever freed them may want them back, and a pool that was just opened has other work
	}
	c.seen = dirty
	switch {
	case len(dirty) == 0, v.unclear != nil, v.writable() != nil, len(v.trash) > 0, c.pool.wiper.problem() != nil:
		return min(cleanLook, c.pool.cleanAfter())
	}
	return c.pool.cleanAfter() - time.Since(c.since)
}

func (p *Pool) cleanAfter() time.Duration {
	if p.config.cleanAfter != 0 {
		return p.config.cleanAfter
	}
	return cleanAfter
}

// step cleans a piece, and returns how long to wait before the next one.
func (c *cleaner) step(ctx context.Context) (time.Duration, error) {
	p := c.pool
	v, err := p.latest()
	if err != nil {
		return cleanLook, nil // it is told elsewhere
	}
	if wait := c.due(v); wait > 0 {
		return min(wait, cleanLook), nil
	}
	release, err := p.keys.lock(ctx, hydrationTurn) // one stream of background work is enough for the disks
	if err != nil {
		return 0, err
	}
	pass := sync.OnceFunc(release)
	defer pass()
	defer time.AfterFunc(stallLimit, pass).Stop() // of a disk that does not answer
	length, began := max(cleanStep, c.pace.window().Bytes()), time.Now()
	freed := p.wiper.freed()
	n, id, err := p.beginCleaning(ctx, length)
	if err != nil || n == 0 {
		return cleanLook, err
	}
	for ; ; freed = p.wiper.freed() {
		if v, err = p.latest(); err == nil && v.vg.LVByID(id) == nil {
			break
		}
		select {
		case <-freed:
		case <-time.After(cleanLook): // it cannot be wiped, which the pool's health tells
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	took := time.Since(began)
	pass()
	c.seen = p.dirty(v)
	c.pace.pause(ctx, n, took)
	return 0, nil
}

// beginCleaning makes trash of free extents of unknown content, of that length at
// most, and returns how much, and its id.
func (p *Pool) beginCleaning(ctx context.Context, length size.Bytes) (n size.Bytes, id lvm2.ID, err error) {
	err = p.do(ctx, &change{what: "clean free extents of volume group " + p.vgName, edit: func(t *edit) error {
		if err := t.withoutMapped(); err != nil {
			return err
		}
		dirty := p.dirty(t.view)
		most := min(t.extents(length), max(1, t.free.size()/cleanPart), dirty.size())
		if most == 0 {
			return nil
		}
		trash := newTrash()
		trash.Segments = appendExtents(nil, t.take(pieces(dirty, most, lowEnd)...)...)
		n, id = size.Bytes(most)*t.extent(), trash.ID
		p.wiper.beingCleaned.Store(&trash.ID)
		return t.put(trash)
	}})
	return n, id, err
}
