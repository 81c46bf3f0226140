package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// A volume whose source is in another pool of the node is copied, and is not
// complete before the copy has ended. device-mapper could stack the volume on
// devices of the other group. But then each group's repair, holding and folding
// would depend on the other group, which may be gone. The order is:
//
//  1. the other pool makes a loan of the source's content;
//  2. commit: the volume, with the loan and the progress (tag copying);
//  3. copy, flush, commit the progress, repeatedly;
//  4. commit: the volume is complete;
//  5. the other pool deletes the loan.
//
// After an interruption the next call continues with step 3. If the loan is gone,
// the call begins again, because the source may now have another size. A loan that
// no copy uses is deleted in the background.

// copies are the volumes that are being copied from another pool.
type copies struct {
	jobs
	turn chan struct{} // holds a token while a volume is being copied
}

// CopyVolume creates a volume with the content of a snapshot or volume of source.
// source is another pool of the node, the one that spec.SourcePool names. While the
// content is being copied, CopyVolume returns a *PendingError. A repeated call
// joins the copy, and continues it after a restart. Errors: those of CreateVolume;
// ErrInvalid for a volume that would show its source.
func (p *Pool) CopyVolume(ctx context.Context, spec VolumeSpec, source *Pool) (Volume, error) {
	if err := checkSpec(spec); err != nil {
		return Volume{}, err
	}
	if spec.Shows() {
		return Volume{}, fmt.Errorf("%w: a read-only or transient volume shows its source in pool %s, so it cannot be in pool %s; name the pool of the source, or none",
			ErrInvalid, source.name, p.name)
	}
	for anew := true; ; anew = false {
		lv, err := onceRoom(ctx, p, func() (string, error) {
			return run(ctx, &p.group, []string{nameKey(spec.Name)}, func(ctx context.Context) (string, error) {
				return p.beginCopy(ctx, spec, source)
			})
		})
		if err == nil {
			err = p.awaitCopy(ctx, lv, source)
		}
		switch {
		case err == nil:
			return p.Volume(ctx, lv)
		case !anew || !errors.Is(err, errNotLent):
			return Volume{}, err
		}
	}
}

// errNotLent says that somebody deleted the loan that a volume is copied from.
var errNotLent = fmt.Errorf("%w: the loan that the volume is copied from is gone", ErrUnavailable)

// beginCopy finds the volume of spec's name, or creates it with a loan of source.
// The name's key is held.
func (p *Pool) beginCopy(ctx context.Context, spec VolumeSpec, source *Pool) (name string, err error) {
	lent := spec
	lent.SourcePool = ""
	var loan lvm2.ID
	create := func(t *edit) error {
		if o, err := t.Existing(spec); err != nil || o != nil {
			if o != nil {
				name = o.LV.Name
			}
			return err
		}
		from, err := source.offered(lent)
		if loan != "" { // the source may have changed since the loan was made
			from, err = source.lentFor(lent, loan)
		}
		if err != nil {
			return err
		}
		lv, err := p.newCopy(t, spec, from, source)
		if err != nil || loan == "" {
			return err
		}
		name = lv.Name
		catalog.SetCopying(lv, catalog.CopyState{Loan: loan})
		return t.Put(lv)
	}
	c := change{what: fmt.Sprintf("create volume %q from %s %s of pool %s", spec.Name, spec.Source.Kind, spec.Source.LV, source.name), edit: create}
	ask := c
	if err := p.do(ctx, &ask); err != nil || name != "" {
		return name, err
	}
	// There is room. Only now make the loan, so that a request that is refused
	// lends nothing and freezes no volume.
	if loan, err = source.lend(ctx, lent, p.name); err != nil {
		return "", err
	}
	if err = p.do(ctx, &c); err != nil {
		return "", errors.Join(err, source.recall(ctx, loanName(p.name, spec.Name)))
	}
	return name, nil
}

// newCopy allocates a volume for from's content, and not on disks with larger
// logical blocks than the source's: there its file system could not be mounted.
func (p *Pool) newCopy(t *edit, spec VolumeSpec, from catalog.Original, source *Pool) (*lvm2.LV, error) {
	n, err := t.CopyExtents(spec, from)
	if err != nil {
		return nil, err
	}
	v, err := source.latest()
	if err != nil {
		return nil, err
	}
	block, err := v.KindOf(from.Volume)
	if err != nil {
		return nil, err
	}
	kinds := slices.DeleteFunc(t.KindsOf(catalog.AnyKind), func(k size.Bytes) bool { return block != catalog.AnyKind && k > block })
	err = fmt.Errorf("%w: the disks of pool %s have larger logical blocks than those of pool %s (%d bytes), so a copy of a file system could not be mounted there",
		ErrPrecondition, p.name, source.name, uint64(block))
	for _, kind := range kinds {
		var lv *lvm2.LV
		if lv, err = p.newVolume(t, spec, kind, n, 0); err == nil {
			if err := t.blankTail(lv, t.Extents(from.Length)); err != nil {
				return nil, err
			}
			return lv, copyContent(lv, spec, from, v.ExtentSize(), t.ExtentSize())
		}
	}
	return nil, err
}

// copyContent records what lv will hold after the copy. The two pools may have
// extents of different sizes. The unknown extents of a block volume's source were
// never written, so they are zeroed instead of copied.
func copyContent(lv *lvm2.LV, spec VolumeSpec, from catalog.Original, theirs, ours size.Bytes) error {
	unknown, err := catalog.UnknownOf(lv)
	if err != nil {
		return err
	}
	unknown = unknown.Subtract(catalog.RangeSet{{Count: lvm2.Extents(from.Length.RoundUp(ours) / ours)}})
	if spec.Mode != Block {
		for _, u := range from.Unknown {
			first := size.Bytes(u.Start) * theirs / ours
			end := (size.Bytes(u.Start+u.Count) * theirs).RoundUp(ours) / ours
			unknown = unknown.Union(catalog.RangeSet{{Start: lvm2.Extents(first), Count: lvm2.Extents(end - first)}})
		}
		unknown = unknown.Intersect(catalog.RangeSet{{Count: lv.Size()}})
		if unknown, err = headCopied(lv, from, unknown, theirs, ours); err != nil {
			return err
		}
	}
	catalog.SetContent(lv, from.Formatted, unknown)
	return nil
}

// headCopied removes the copy's first extents from its unknown extents, if the
// source's first MiB is known to be its own file system and only the rest of those
// extents is unknown. At least one extent stays unknown, lest the whole copy count
// as wiped.
func headCopied(lv *lvm2.LV, from catalog.Original, unknown catalog.RangeSet, theirs, ours size.Bytes) (catalog.RangeSet, error) {
	first := func(extent size.Bytes) catalog.RangeSet {
		return catalog.RangeSet{{Count: lvm2.Extents(size.MiB.RoundUp(extent) / extent)}}
	}
	if !from.Formatted || len(unknown.Intersect(first(ours))) == 0 || len(from.Unknown.Intersect(first(theirs))) > 0 {
		return unknown, nil
	}
	rest := unknown.Subtract(first(ours))
	if len(rest) == 0 {
		rest = catalog.RangeSet{{Count: lv.Size()}}.Subtract(first(ours))
	}
	if len(rest) == 0 {
		return nil, fmt.Errorf("%w: parts of the source were never wiped, and the copy would be a single extent of %d bytes; request a larger volume", ErrPrecondition, uint64(ours))
	}
	return rest, nil
}

// awaitCopy waits until the volume is complete, and starts the copy if none is
// running.
func (p *Pool) awaitCopy(ctx context.Context, lv string, source *Pool) error {
	what := fmt.Sprintf("copying volume %s/%s from pool %s", p.vgName, lv, source.name)
	return p.copies.await(ctx, p, lv, what, func() (*job, error) {
		v, err := p.latest()
		if err != nil {
			return nil, err
		}
		o := v.VolumeByLV(lv)
		if o == nil || o.Copying == nil {
			return nil, nil
		}
		j := &job{total: uint64(v.BytesOf(o.LV))}
		j.done.Store(uint64(o.Copying.Done.Bytes()))
		return j, nil
	}, func(ctx context.Context, j *job) error { return p.copyNow(ctx, lv, source, j) })
}

// copyNow copies the volume from source and makes it complete. If the content is
// gone, copyNow deletes the volume.
func (p *Pool) copyNow(ctx context.Context, lv string, source *Pool, j *job) error {
	select {
	case p.copies.turn <- struct{}{}:
		defer func() { <-p.copies.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	o, err := p.unfinished(lv, source)
	if err != nil {
		return p.orGone(ctx, lv, source, err)
	}
	c := copying{pool: p, source: source, lv: lv, state: *o.Copying, job: j}
	if err := c.open(ctx, o); err != nil {
		return p.orGone(ctx, lv, source, err)
	}
	err = errors.Join(c.run(ctx), c.close(context.WithoutCancel(ctx)))
	if err != nil {
		return p.orGone(ctx, lv, source, fmt.Errorf("copying volume %s/%s from pool %s: %w", p.vgName, lv, source.name, err))
	}
	if err := p.do(ctx, &change{what: "complete volume " + lv, edit: func(t *edit) error {
		now, err := c.current(t.view())
		if err != nil {
			return err
		}
		return t.CompleteCopy(now)
	}}); err != nil {
		return err
	}
	if err := source.recall(ctx, loanName(p.name, o.Name)); err != nil {
		p.log.Error(err, "Copied a volume, but failed to delete the loan that it was copied from; it will be retried", "volume", lv, "source", source.name)
	}
	return nil
}

// unfinished returns the incomplete volume, if its loan still exists.
func (p *Pool) unfinished(lv string, source *Pool) (*catalog.Volume, error) {
	v, err := p.latest()
	if err != nil {
		return nil, err
	}
	o := v.VolumeByLV(lv)
	if o == nil || o.Copying == nil {
		return nil, fmt.Errorf("volume %s/%s: %w: removed by somebody else", p.vgName, lv, ErrNotFound)
	}
	if _, _, err = source.lent(o.Copying.Loan); errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("volume %s/%s: %w", p.vgName, lv, errNotLent)
	}
	return o, err
}

// orGone returns err. If the source of the copy is gone, so that the volume can
// never be complete, orGone deletes the volume. No caller has been told of the
// volume yet.
func (p *Pool) orGone(ctx context.Context, lv string, source *Pool, err error) error {
	if !errors.Is(err, ErrLost) && !errors.Is(err, ErrNotFound) && !errors.Is(err, errNotLent) {
		return err
	}
	v, latest := p.latest()
	if latest != nil {
		return errors.Join(err, latest)
	}
	if o := v.VolumeByLV(lv); o != nil && o.Copying != nil {
		err = errors.Join(err, p.DeleteVolume(ctx, lv), source.recall(ctx, loanName(p.name, o.Name)))
	}
	return err
}

// copying is one attempt to copy a volume.
type copying struct {
	pool, source *Pool
	lv           string
	state        catalog.CopyState
	job          *job

	from, to *os.File
	device   device      // of to
	length   size.Bytes  // of the source
	zeroes   []byteRange // parts of the source that were never written, sorted
	end      size.Bytes  // end of the last extent that holds a part of the source
}

// byteRange is a part of a device.
type byteRange struct{ from, to size.Bytes }
