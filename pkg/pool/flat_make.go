package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// flattenBelow sees to it that what lv reads through can be read by few devices,
// before they are made. lv's key is held. Where no flat store can be made a stack
// of devices does as well, up to what the kernel can read through: only beyond
// that it is an error.
func (p *Pool) flattenBelow(ctx context.Context, lv string) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	for _, name := range v.family(lv) {
		o := v.volumeByLV(name)
		if o == nil {
			continue
		}
		l := v.layers[o.from()]
		if l == nil || v.layers[l.lv.ID] == nil || v.circular(o) != nil {
			continue
		}
		err := p.flattenLayer(ctx, l.of, l.lv.ID)
		if err == nil {
			continue
		}
		now, failed := p.latest()
		if failed != nil || ctx.Err() != nil {
			return errors.Join(err, failed)
		}
		if o, l := now.volumes[l.of], now.layers[l.lv.ID]; o != nil && l != nil && now.depth(o, l) > p.deepest {
			return fmt.Errorf("snapshot %s/%s: %w", now.vg.Name, l.lv.Name, err)
		}
		p.log.V(2).Info("An old snapshot is read by a device for each newer one: no store of its own could be made", "volumeGroup", p.vgName, "snapshot", l.lv.Name, "why", err)
	}
	return nil
}

// flattenLayer makes a flat store for a layer that is read by more than flatLevels
// devices, or would be.
func (p *Pool) flattenLayer(ctx context.Context, volume, layer lvm2.ID) error {
	v, o, l, err := p.steep(volume, layer)
	if err != nil || l == nil {
		return err
	}
	began := time.Now()
	if err = p.makeFlat(ctx, v, o, l); err == nil {
		p.log.V(2).Info("An old snapshot is read by a store of its own", "volume", o.lv.Name, "snapshot", l.lv.Name, "layers", len(o.path(l))-1, "took", time.Since(began))
	}
	return err
}

// flattenRead makes flat stores for the snapshots of a volume that are read by too
// many devices since newer ones were cut, and puts them below who reads. Its key is held.
func (p *Pool) flattenRead(ctx context.Context, lv string) error {
	v, err := p.latest()
	for err == nil && v.volumeByLV(lv) != nil {
		o := v.volumeByLV(lv)
		l := p.steepestRead(v, o)
		if l == nil { // what is left of too many devices has no reader
			return p.do(ctx, &change{what: "remove what nobody reads of volume " + lv, act: func(ctx context.Context, now *view) error {
				if o := now.volumeByLV(lv); o != nil {
					return p.chainDown(ctx, now, o)
				}
				return nil
			}})
		}
		if err = p.flattenLayer(ctx, o.lv.ID, l.lv.ID); err != nil {
			return fmt.Errorf("snapshot %s/%s: %w", v.vg.Name, l.lv.Name, err)
		}
		err = p.do(ctx, &change{what: "read an old snapshot of volume " + lv + " by fewer devices", act: func(ctx context.Context, now *view) error {
			o, l := now.volumeByLV(lv), now.layers[l.lv.ID]
			if o == nil || l == nil {
				return nil
			}
			if len(now.route(o, l)) > flatLevels {
				return fmt.Errorf("snapshot %s/%s: %w: its history has changed", now.vg.Name, l.lv.Name, ErrPrecondition)
			}
			if _, err := p.chainUp(ctx, now, o, l); err != nil {
				return err
			}
			return p.chainDown(ctx, now, o)
		}})
		// Also one that could not be put in place: the layers themselves do as well.
		if err = errors.Join(err, p.dropFlats(ctx, lv)); err == nil {
			v, err = p.latest()
		}
	}
	return err
}

// steepest returns the oldest layer of o that has a device, and would be read by
// more devices than a flat store is worth; nil if there is none. Those of a fold that
// is under way stay as they are, and keep none of the others.
func (v *view) steepest(o *volume, has map[string]bool, folded func(lvm2.ID) bool) *layer {
	for i, l := range o.layers {
		if len(o.layers)-i <= flatLevels {
			break
		}
		if has[v.snapDevice(l.lv).uuid] && !l.lost && !folded(l.lv.ID) && len(v.route(o, l)) > flatLevels {
			return l
		}
	}
	return nil
}

// steepestRead does what steepest does, for a layer that somebody has open.
func (p *Pool) steepestRead(v *view, o *volume) *layer {
	has := map[string]bool{}
	for _, l := range o.layers {
		if info, err := p.find(v.snapDevice(l.lv)); err == nil && info != nil && info.OpenCount > 0 {
			has[v.snapDevice(l.lv).uuid] = true
		}
	}
	return v.steepest(o, has, p.folder.folds)
}

// steep finds the layer if it needs a flat store: l is nil if it does not.
func (p *Pool) steep(volume, layer lvm2.ID) (v *view, o *volume, l *layer, err error) {
	if v, err = p.latest(); err != nil {
		return nil, nil, nil, err
	}
	o, l = v.volumes[volume], v.layers[layer]
	if o == nil || l == nil || o.theirs() != "" || len(v.route(o, l)) <= flatLevels {
		return v, o, nil, nil
	}
	for _, x := range o.path(l) {
		if x.lost {
			return v, o, nil, nil // and that is said where it is read
		}
	}
	return v, o, l, nil
}

// makeFlat makes a flat store for l and writes it. An interruption leaves a logical
// volume that counts as not written, and goes.
func (p *Pool) makeFlat(ctx context.Context, v *view, o *volume, l *layer) error {
	if path := o.path(l); !flattable(path[:len(path)-1]) {
		if err := p.trim(ctx, o.lv.Name); err != nil {
			return err
		}
		var err error
		if v, o, l, err = p.steep(o.lv.ID, l.lv.ID); err != nil || l == nil {
			return err
		}
	}
	path := o.path(l)
	layers, over := path[:len(path)-1], path[len(path)-1]
	switch {
	case over.snap == nil:
		return fmt.Errorf("snapshot %s: %w: a layer that it reads through was removed", l.lv.Name, ErrLost)
	case !flattable(layers):
		return fmt.Errorf("%w: how much the stores of layers between snapshot %s and volume %s use is not known yet", ErrPrecondition, l.lv.Name, o.lv.Name)
	}
	sources, done, err := p.sources(v, layers)
	if err != nil {
		return err
	}
	defer done()
	f := &flat{of: o.lv.ID, reads: l.lv.ID, over: over.lv.ID, chunk: cow.Smallest(sources).Sectors()}
	layout := cow.NewFlat(f.chunk.Bytes(), cow.MostMerged(sources))
	device, err := p.addFlat(ctx, f, layout)
	if err == nil {
		err = writeFlat(ctx, device, layout, sources)
	}
	if errors.Is(err, cow.ErrInvalid) {
		err = p.recordInvalid(ctx, v, layers, err)
	}
	if err == nil {
		err = p.flatWritten(ctx, f, layout.Metadata())
	}
	if err != nil && f.lv != nil {
		if failed := p.dropFlats(ctx, o.lv.Name); failed != nil && ctx.Err() == nil {
			p.log.Error(failed, "What is left of a store that could not be made goes later", "volume", o.lv.Name)
		}
	}
	return err
}

// sources opens the disks that the stores of layers lie on. No devices are needed:
// nothing writes to a frozen store, and nothing of it is in a cache.
func (p *Pool) sources(v *view, layers []*layer) (out []cow.Layer, done func(), err error) {
	files := map[int]*os.File{}
	done = func() {
		for _, f := range files {
			f.Close()
		}
	}
	for _, l := range layers {
		d := &scattered{extent: v.extent()}
		if d.ranges, err = physical(l.lv); err != nil {
			done()
			return nil, nil, err
		}
		for _, r := range d.ranges {
			pv := v.vg.PVs[r.PV]
			if files[r.PV] == nil {
				if err = v.missing(pv); err == nil {
					files[r.PV], err = openDisk(pv, os.O_RDONLY|unix.O_DIRECT)
				}
				if err != nil {
					done()
					return nil, nil, err
				}
			}
			d.files = append(d.files, files[r.PV])
			d.starts = append(d.starts, v.vg.Offset(pv, r.Start).Bytes())
		}
		store := cow.NewStore(v.vg.Name+"/"+l.lv.Name, d, l.used.Bytes())
		out = append(out, cow.Layer{Chunk: l.chunk.Bytes(), Length: l.length, Used: l.used, Read: store.Exceptions})
	}
	return out, done, nil
}

// scattered reads a logical volume from the disks.
type scattered struct {
	extent size.Bytes
	ranges []lvm2.Range
	files  []*os.File   // of each range
	starts []size.Bytes // of each range, on its disk
}

// ReadAt is io.ReaderAt's.
func (d *scattered) ReadAt(b []byte, at int64) (n int, err error) {
	begin := size.Bytes(0)
	for i, r := range d.ranges {
		end := begin + size.Bytes(r.Count)*d.extent
		for n < len(b) && size.Bytes(at)+size.Bytes(n) >= begin && size.Bytes(at)+size.Bytes(n) < end {
			here := size.Bytes(at) + size.Bytes(n)
			part := b[n:min(len(b), n+int(end-here))]
			k, err := d.files[i].ReadAt(part, int64(d.starts[i]+here-begin))
			if n += k; err != nil {
				return n, err
			}
		}
		begin = end
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// addFlat gives f its extents and returns the path of the device that it is written by.
func (p *Pool) addFlat(ctx context.Context, f *flat, layout cow.Flat) (path string, err error) {
	err = p.do(ctx, &change{what: "make a store to read an old snapshot by", edit: func(t *edit) error {
		o, l := t.volumes[f.of], t.layers[f.reads]
		if o == nil || l == nil || o.live() == nil || o.live().lv.ID != f.over {
			return fmt.Errorf("%w: its history has changed", ErrPrecondition)
		}
		if err := errors.Join(t.writable(), p.roomForText(t.view)); err != nil {
			return err
		}
		kind, err := t.kindOf(o)
		if err != nil {
			return err
		}
		n := t.extents(layout.Metadata())
		// Live stores must find room meanwhile, or snapshots are lost.
		if free, spare := t.freeOn(kind).size(), p.reserve(t.view)/2; free < n+spare {
			return fmt.Errorf("%w: %d extents are needed to read it for as long as it is read, volume group %s has %d free, of which %d are kept for stores of snapshots to grow; delete volumes or newer snapshots, or extend the volume group",
				ErrNoSpace, n, t.vg.Name, free, spare)
		}
		ranges, err := t.allocateOn(kind, n, highEnd)
		if err != nil {
			return err
		}
		lv := newLV("", roleFlat, tag(tagOf, string(f.of)), tag(tagReads, string(f.reads)), tag(tagOver, string(f.over)),
			tag(tagChunk, strconv.FormatUint(uint64(f.chunk), 10)))
		lv.Name = flatPrefix + string(lv.ID)
		lv.Status = []string{lvm2.StatusRead, lvm2.StatusVisible}
		handOff(lv)
		lv.Segments = appendExtents(nil, ranges...)
		f.lv = lv
		return t.put(lv)
	}, act: func(ctx context.Context, v *view) error {
		d := v.cowDevice(f.lv)
		table, err := v.linearTable(f.lv)
		if err != nil {
			return err
		}
		dev, _, err := p.ensureFrom(nil, d, table, false)
		if err == nil {
			err = p.start(ctx, d, dev)
		}
		path = p.dm.Node(d.name)
		return err
	}})
	return path, err
}

// writeFlat writes header and areas of a flat store, which are on the disk then.
func writeFlat(ctx context.Context, path string, layout cow.Flat, sources []cow.Layer) (err error) {
	file, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if _, err := layout.Write(file, cow.Merge(ctx, sources)); err != nil {
		return err
	}
	return os.NewSyscallError("fdatasync", unix.Fdatasync(int(file.Fd())))
}

// flatWritten records that the store can be used.
func (p *Pool) flatWritten(ctx context.Context, f *flat, used size.Bytes) error {
	return p.do(ctx, &change{what: "record that a store to read an old snapshot by is written", edit: func(t *edit) error {
		lv := t.vg.LVByID(f.lv.ID)
		if lv == nil {
			return fmt.Errorf("logical volume %s/%s: %w: removed by somebody else", t.vg.Name, f.lv.Name, ErrNotFound)
		}
		c := lv.Clone()
		c.Tags = setTag(c.Tags, tagUsed, strconv.FormatUint(uint64(used.Sectors()), 10))
		return t.put(c)
	}})
}

// recordInvalid writes down which layer the kernel had given up, unnoticed until
// now, and returns why, an error.
func (p *Pool) recordInvalid(ctx context.Context, v *view, layers []*layer, why error) error {
	sources, done, err := p.sources(v, layers)
	if err != nil {
		return errors.Join(why, err)
	}
	defer done()
	for i, s := range sources {
		for _, err := range s.Read(ctx) {
			if errors.Is(err, cow.ErrInvalid) {
				loss := &unrecordedLoss{volume: layers[i].of, layer: layers[i].lv.ID}
				return errors.Join(fmt.Errorf("%w: %w", ErrLost, why), p.do(ctx, loss.record()))
			}
			break
		}
	}
	return why
}
