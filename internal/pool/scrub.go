package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// edges returns the extents with the first and last MiB of o, where signatures of
// file systems lie.
func (v *view) edges(o *volume) rangeSet {
	head := v.head(o)
	return head.union(rangeSet{{Start: o.lv.Size() - head.size(), Count: head.size()}})
}

// head returns the extents with the first MiB of o.
func (v *view) head(o *volume) rangeSet {
	return rangeSet{{Count: min(v.extents(size.MiB), o.lv.Size())}}
}

// zeroedHead removes the first extents from the extents that an older build
// recorded as unknown for o or for a layer of o. That build zeroed the first MiB of
// a volume, below its snapshots, before it formatted the volume, but did not record
// that. For a copy it is not certain that the head was zeroed, and for a former
// block volume it is false. The rest of a head extent may be unwiped. So if no
// other extent is unknown, the record stays as it is, lest the whole volume count
// as wiped.
func (v *view) zeroedHead(o *volume, unknown rangeSet) rangeSet {
	if o.mode != Filesystem || !o.formatted || o.raw || o.source.Kind != FromNothing {
		return unknown
	}
	if rest := unknown.subtract(v.head(o)); len(rest) > 0 {
		return rest
	}
	return unknown
}

// unwiped returns the extents of o that must be zeroed before anybody sees them. A
// block volume shows all its extents. A file system shows only the blocks that were
// written after it was made. If the pool cleans at first use, all extents of either
// kind are zeroed, so that the volume can become a block device later. A copy is
// the exception, because zeroing it would first copy it.
func (p *Pool) unwiped(v *view, o *volume) rangeSet {
	switch {
	case o.readOnly:
		return nil // it has no extents; presentable refuses it
	case o.copying != nil:
		return nil // the copy overwrites it, and nobody sees it before
	case o.mode == Block:
		return o.unknown
	case o.formatted:
		return nil
	}
	must := v.edges(o)
	if o.from() == "" {
		must = must.union(p.atFirstUse(v, o.lv))
	}
	return o.unknown.intersect(must)
}

// presentable is the only check, at every activation, between a volume's content
// and its user. It returns an error if a block volume has extents that may hold an
// earlier owner's bytes, or if the first MiB of a file system that counts as made
// has such extents: then the file system may be the earlier owner's.
func (v *view) presentable(o *volume) error {
	seen := o.unknown
	if o.mode == Filesystem {
		seen = seen.intersect(v.head(o))
	}
	at := v.vg.Name + "/" + o.lv.Name
	switch {
	case o.mode == Filesystem && o.reading() && !o.transient && !o.formatted:
		return fmt.Errorf("volume %s: %w: the volume had no file system yet when the snapshot was taken, so there is nothing to read; restore it to a writable volume, which gets a file system", at, ErrPrecondition)
	case len(seen) == 0:
		return nil
	case o.mode == Block || !o.formatted:
		return fmt.Errorf("volume %s was not wiped: %w: another process opened its device first", at, ErrInUse)
	}
	lv := o.lv
	if l := v.layers[o.reads]; l != nil && !o.transient {
		lv = l.lv
	}
	var own []string
	p, _, _ := readProperties(lv.Tags)
	if text, has := p[tagUnknown]; has {
		own = append(own, "--deltag "+tag(tagUnknown, text))
	}
	if rest := o.unknown.subtract(seen); len(rest) > 0 {
		own = append(own, "--addtag "+tag(tagUnknown, unknownText(rest)))
	}
	at = v.vg.Name + "/" + lv.Name
	return fmt.Errorf("logical volume %s: %w: it counts as formatted, but its first extents may hold an earlier owner's file system; if nothing on it is needed, have it formatted again with lvchange --addtag %s %s; if the file system is its own, confirm that with lvchange %s %s",
		at, ErrPrecondition, tag(tagUnformatted), at, strings.Join(own, " "), at)
}

// scrub makes sure that nobody reads an earlier owner's bytes from the volume.
func (p *Pool) scrub(ctx context.Context, lv string) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	o := v.volumeByLV(lv)
	if o == nil || len(p.unwiped(v, o)) == 0 {
		return nil
	}
	// Zeroing a part that a fork still reads through would fill the fork's store,
	// and would wait for a hydration that waits for the volume's key.
	for o.mode == Block && v.readsUnknown(o) {
		select {
		case <-time.After(busyPause):
		case <-ctx.Done():
			return &PendingError{What: "hydrating volume " + lv + ", parts of which must be wiped afterwards"}
		}
		if v, err = p.latest(); err != nil {
			return err
		}
		if o = v.volumeByLV(lv); o == nil || len(p.unwiped(v, o)) == 0 {
			return nil
		}
	}
	return p.wiper.scrubs.await(ctx, p, lv, "wiping volume "+lv, func() (*job, error) {
		return &job{total: uint64(size.Bytes(p.unwiped(v, o).size()) * v.extent())}, nil
	}, func(ctx context.Context, j *job) error {
		if err := p.flattenBelow(ctx, lv); err != nil {
			return err
		}
		return p.onVolume(ctx, lv, func(ctx context.Context) error { return p.scrubNow(ctx, lv, j) })
	})
}

// scrubbing reports whether the driver is zeroing the volume. Then nobody else
// writes to it.
func (p *Pool) scrubbing(lv string) bool {
	j := p.wiper.scrubs.of(lv)
	return j != nil && j.writing.Load()
}

// readsUnknown reports whether a fork reads parts of its snapshot that may hold an
// earlier owner's bytes.
func (v *view) readsUnknown(o *volume) bool {
	l := v.layers[o.copyOf]
	return l != nil && len(o.unknown.intersect(rangeSet{{Start: 0, Count: v.extents(l.length.Bytes())}})) > 0
}

// scrubNow zeroes the unwiped extents through a device of the volume, and records
// that. The caller holds the volume's key. The open device keeps LVM2 away from the
// volume.
func (p *Pool) scrubNow(ctx context.Context, lv string, j *job) (err error) {
	var was *view
	var o *volume
	var f *os.File
	err = p.do(ctx, &change{what: "wipe volume " + lv, act: func(ctx context.Context, v *view) (err error) {
		was, o = v, v.volumeByLV(lv)
		if o == nil || len(p.unwiped(v, o)) == 0 {
			return nil
		}
		if why := o.theirs(); why != "" {
			return fmt.Errorf("volume %s/%s: %w: %s", v.vg.Name, lv, ErrPrecondition, why)
		}
		if info, err := p.find(v.topDevice(o.lv)); err != nil || info != nil && info.OpenCount > 0 {
			return err // already in use, so it was scrubbed before
		}
		j.writing.Store(true)
		f, err = p.openToScrub(ctx, v, o)
		return err
	}})
	defer j.writing.Store(false)
	if err != nil || f == nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	todo := p.unwiped(was, o)
	progress := func(n size.Bytes) { j.done.Add(uint64(n)) }
	for _, r := range todo {
		if err := zeroDevice(ctx, f, size.Bytes(r.Start)*was.extent(), size.Bytes(r.Count)*was.extent(), progress); err != nil {
			return err
		}
	}
	return p.do(ctx, &change{what: "record that volume " + lv + " was wiped", edit: func(t *edit) error {
		now := t.volumeByLV(lv)
		if now == nil {
			return nil
		}
		if !sameExtents(was.vg, o.lv, t.vg, now.lv) {
			return fmt.Errorf("volume %s/%s: %w: LVM2 moved or resized it while it was wiped", t.vg.Name, lv, ErrPrecondition)
		}
		return t.setWiped(now, todo)
	}})
}

// openToScrub opens the device with the volume's content. If the volume has a
// snapshot, that is the device below the snapshot, so that zeroing does not copy
// the old bytes into the snapshot's store.
func (p *Pool) openToScrub(ctx context.Context, v *view, o *volume) (*os.File, error) {
	d := v.topDevice(o.lv)
	if o.transient {
		if err := p.up(ctx, v, o); err != nil {
			return nil, err
		}
		return p.openPath(p.dm.Node(d.name), d)
	}
	table, err := p.blocks(ctx, v, o)
	if err != nil {
		return nil, err
	}
	if o.live() != nil {
		d = v.realDevice(o.lv)
	}
	return p.openDevice(ctx, v, d, table)
}
