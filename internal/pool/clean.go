package pool

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Cleaning chooses when extents of unknown content, such as all extents of a new
// pool, are wiped. Whatever is chosen, extents that a block device would show are
// wiped before it shows them.
type Cleaning string

// The choices. The zero value is CleanBackground on disks that produce zeroes by
// themselves, and CleanNever on others.
const (
	CleanBackground Cleaning = "background" // all free extents, piece by piece while the disks are idle; the rest as with CleanFirstUse
	CleanFirstUse   Cleaning = "first-use"  // all extents of a volume, when it is first staged
	CleanNever      Cleaning = "never"      // only the extents that a file system must not find
)

const (
	cleanAfter = 30 * time.Second // wait after the pool was opened, or after somebody else freed extents
	cleanLook  = 10 * time.Second // pause between two checks for extents to clean
	cleanStep  = 64 * size.MiB    // least size of a piece, so that few commits are made
	cleanPart  = 4                // divisor: the largest share of the free extents in one piece, which is not free while it is cleaned
)

// cleanable returns the extents, free or not, that the configuration wants cleaned
// before somebody gets them.
func (p *Pool) cleanable(v *view) catalog.RangeSet {
	switch p.config.Clean {
	case CleanBackground, CleanFirstUse:
		return v.DisksOn(catalog.AnyKind)
	case CleanNever:
		return nil
	}
	var out []lvm2.Range
	for n, pv := range v.VG.PVs {
		if !pv.Missing() && zeroesItself(diskOf(pv)) {
			out = append(out, lvm2.Range{PV: n, Count: pv.PECount})
		}
	}
	return catalog.NewRangeSet(out...)
}

// zeroesItself reports whether a disk produces zeroes of any length without
// transferring them, and can do that fast: it unmaps, or is not a rotating disk.
func zeroesItself(dev dm.Device) bool {
	limit := func(name string) (n uint64) {
		for _, at := range []string{"", "../"} { // a partition has the limits of its disk
			if text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%v/%squeue/%s", dev, at, name)); err == nil {
				n, _ = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64) // 0 is the safe answer
				return n
			}
		}
		return 0
	}
	return limit("write_zeroes_max_bytes") > 0 && (limit("rotational") == 0 || limit("discard_max_bytes") > 0)
}

// dirty returns the free extents that are to be cleaned in the background.
func (p *Pool) dirty(v *view) catalog.RangeSet {
	if p.config.Clean == CleanFirstUse {
		return nil
	}
	return v.Free.Subtract(v.Clean).Intersect(p.cleanable(v))
}

// cleaning returns the effective choice for the group's disks.
func (p *Pool) cleaning(v *view) Cleaning {
	switch {
	case p.config.Clean != "":
		return p.config.Clean
	case len(p.cleanable(v)) > 0:
		return CleanBackground
	}
	return CleanNever
}

// atFirstUse returns the logical extents of lv that are wiped before its first use,
// whatever the use.
func (p *Pool) atFirstUse(v *view, lv *lvm2.LV) catalog.RangeSet {
	has, err := catalog.Physical(lv)
	if err != nil {
		return nil
	}
	return catalog.RangeSet{{Count: lv.Size()}}.Subtract(catalog.LogicalOutside(p.cleanable(v), 0, has))
}

// cleaner wipes free extents of unknown content in the background. It turns a piece
// of them into trash. LVM2 ignores trash, and the wiper wipes and frees it; after
// an interruption the next process's wiper does. The cleaner works only while
// neither hydration nor the volumes' users need the disks.
type cleaner struct {
	pool  *Pool
	pace  pace
	seen  catalog.RangeSet // dirty extents at the last look
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

// due returns how long to wait until there is a piece to clean.
func (c *cleaner) due(v *view) time.Duration {
	dirty := c.pool.dirty(v)
	if more := dirty.Subtract(c.seen); len(more) > 0 {
		c.since = time.Now() // their former user may need them again, and a pool that was just opened has other work
	}
	c.seen = dirty
	switch {
	case len(dirty) == 0, v.Unclear != nil, v.Writable() != nil, len(v.Trash) > 0, c.pool.wiper.problem() != nil:
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

// step cleans a piece, and returns the pause before the next piece.
func (c *cleaner) step(ctx context.Context) (time.Duration, error) {
	p := c.pool
	v, err := p.latest()
	if err != nil {
		return cleanLook, nil // reported elsewhere
	}
	if wait := c.due(v); wait > 0 {
		return min(wait, cleanLook), nil
	}
	release, err := p.keys.lock(ctx, hydrationTurn) // the disks get only one stream of background work
	if err != nil {
		return 0, err
	}
	pass := sync.OnceFunc(release)
	defer pass()
	defer time.AfterFunc(stallLimit, pass).Stop() // a disk may not answer
	length, began := max(cleanStep, c.pace.nextLength().Bytes()), time.Now()
	freed := p.wiper.freed()
	n, id, err := p.beginCleaning(ctx, length)
	if err != nil || n == 0 {
		return cleanLook, err
	}
	for ; ; freed = p.wiper.freed() {
		if v, err = p.latest(); err == nil && v.VG.LVByID(id) == nil {
			break
		}
		select {
		case <-freed:
		case <-time.After(cleanLook): // it may be impossible to wipe; the pool's health shows that
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

// beginCleaning turns free extents of unknown content into trash, at most length of
// them. It returns their size, and the id of the trash.
func (p *Pool) beginCleaning(ctx context.Context, length size.Bytes) (n size.Bytes, id lvm2.ID, err error) {
	err = p.do(ctx, &change{what: "clean free extents of volume group " + p.vgName, edit: func(t *edit) error {
		if err := t.WithoutMapped(); err != nil {
			return err
		}
		dirty := p.dirty(t.view())
		most := min(t.Extents(length), max(1, t.Free.Size()/cleanPart), dirty.Size())
		if most == 0 {
			return nil
		}
		trash := catalog.NewTrash()
		trash.Segments = catalog.AppendExtents(nil, t.Take(catalog.Pieces(dirty, most, catalog.LowEnd)...)...)
		n, id = size.Bytes(most)*t.ExtentSize(), trash.ID
		p.wiper.beingCleaned.Store(&trash.ID)
		return t.Put(trash)
	}})
	return n, id, err
}
