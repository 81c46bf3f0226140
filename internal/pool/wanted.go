package pool

import (
	"fmt"
	"maps"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// A family is a volume and all volumes, such as forks and readers, that read through it
// directly or indirectly. Their devices lie on each other. The metadata, the devices in
// use, and the running work of the driver determine the devices that a family should have.
// This file computes them. It has no I/O and changes nothing.
//
//	volume            linear            its extents, or as a fork (fork.go)
//	volume with       volume            snapshot-origin  <volume-real>
//	a live layer      volume-real       linear           its extents, or as a fork
//	                  snapN             snapshot         <volume-real> <snapN-cow> P
//	                  snapN-cow         linear           the store's extents
//	older layer       snapK             snapshot         <snapK+1> <snapK-cow> P, read-only
//	with a flat store snapK             snapshot         <snapN> <flat-cow> P, read-only (flat.go)
//	reader            volume            linear           <snapK>, read-only
//	transient volume  volume            snapshot         <snapK> <volume-cow> N

// wanted is a device that a family should have.
type wanted struct {
	device
	table    symbolic
	readOnly bool
	// asIs is set if the kernel's device may differ in ReadOnly. The store of a frozen layer
	// stays writable from its time as the live layer. A volume's own device is read-only
	// while it is published only to readers.
	asIs bool
	// once is set if the device keeps a table that it has. Another table would lose writes.
	once bool
	of   *catalog.Volume // owner of the device
	// layer is the layer of a snapshot device; nil for other devices.
	layer *catalog.Layer
	// stretch is the longer table of the store while the kernel constructs the snapshot, if
	// the store is crowded; nil otherwise.
	stretch symbolic
}

// use is the part of a family that is in use.
type use struct {
	active  map[lvm2.ID]bool // volumes that have their own device, for their users
	content map[lvm2.ID]bool // forks whose content is needed, with or without their own device, as for hydration
	read    map[lvm2.ID]bool // layers that are read from outside of the family
}

// running is the work of the driver on devices that the metadata does not show.
type running struct {
	windows  map[lvm2.ID]window // windows of forks under hydration, by the volume
	copied   map[lvm2.ID]string // name layers of windows that are copied; their mirrors hold no I/O back
	heir     lvm2.ID            // the frozen layer whose store a fold writes
	held     map[string]bool    // UUIDs of devices that stay suspended to hold writers
	asLoaded map[string]bool    // UUIDs of flat stores' devices that have the right table, which is not computed again
	stuck    map[lvm2.ID]error  // volumes that could not be brought in line and are left as they are, with the error
	strays   map[string]error   // UUIDs of devices without a volume that are left as they are, with the error
}

// wantedSet is the set of devices that a family should have.
type wantedSet struct {
	*view
	use
	running
	now     kernel             // the family's current devices
	devices []wanted           // a device comes after the devices that it lies on
	kept    map[string]error   // UUIDs of devices that are left as they are, if they exist, with the reason
	open    map[lvm2.ID]string // volumes with a device that nobody needs, and that the plan leaves because it is open; its name
}

// want computes the wanted devices of a family. The first of members is the root of the
// family, and a volume comes before the volumes that read through it (catalog.View.Members).
// k are the family's current devices.
func (v *view) want(members []*catalog.Volume, u use, r running, k kernel) *wantedSet {
	w := &wantedSet{view: v, use: u.clone(), running: r, now: k, kept: map[string]error{}, open: map[lvm2.ID]string{}}
	maps.Copy(w.kept, r.strays)
	for _, o := range slices.Backward(members) { // a volume before the volumes that it reads through
		w.needs(o)
	}
	for _, o := range members {
		w.volume(o)
	}
	return w
}

func (u use) clone() use {
	c := use{active: u.active, content: map[lvm2.ID]bool{}, read: map[lvm2.ID]bool{}}
	for id, is := range u.content {
		c.content[id] = is
	}
	for id, is := range u.read {
		c.read[id] = is
	}
	return c
}

// needs marks what the uses of o need: the newer layers below each layer that is read, the
// content of o, and the layer that o itself reads through.
func (w *wantedSet) needs(o *catalog.Volume) {
	for _, l := range o.Layers { // a layer lies on a newer layer, which comes later in the list
		if w.read[l.LV.ID] {
			w.content[o.LV.ID] = true
			if below := w.Below(o, l); below != nil {
				w.read[below.LV.ID] = true
			}
		}
	}
	if _, copied := w.windows[o.LV.ID]; w.active[o.LV.ID] || copied {
		w.content[o.LV.ID] = true
	}
	if from := w.Layers.Get(o.From()); from != nil && w.content[o.LV.ID] && o.Theirs() == "" {
		w.read[from.LV.ID] = true
	}
}

// keep marks all devices of the logical volumes as kept, with the reason why.
func (w *wantedSet) keep(why error, lvs ...*lvm2.LV) {
	for _, lv := range lvs {
		for _, layer := range allLayers {
			w.kept[lvm2.DMUUID(w.VG.ID, lv.ID, layer)] = why
		}
	}
}

// allLayers are the layers of device names that a logical volume of the driver can have.
var allLayers = []string{"", layerReal, layerCOW, layerFork, layerWindow0, layerWindow1, layerRecovered}

// add adds a device. If err is set, its table is unknown, and the device is kept.
func (w *wantedSet) add(d wanted, err error) {
	if err != nil {
		w.kept[d.uuid] = err
		return
	}
	w.devices = append(w.devices, d)
}

// volume adds the devices of a volume and of its layers.
func (w *wantedSet) volume(o *catalog.Volume) {
	if why := w.untouchable(o); why != nil {
		w.keep(why, o.Parts()...)
		return
	}
	if o.Copying != nil { // the copy job uses its device
		w.kept[w.realDevice(o.LV).uuid] = fmt.Errorf("volume %s/%s: %w: it is being copied", w.VG.Name, o.LV.Name, ErrPrecondition)
	}
	if !w.content[o.LV.ID] {
		return
	}
	if o.Reading() {
		w.reader(o)
		return
	}
	blocks, err := w.blocks(o)
	if err != nil {
		w.keep(err, o.Parts()...)
		return
	}
	live, readOnly := o.Live(), catalog.ReadOnlyLV(o.LV)
	top := wanted{device: w.topDevice(o.LV), table: blocks, readOnly: readOnly, asIs: !readOnly, of: o}
	if live == nil {
		if w.active[o.LV.ID] {
			w.add(top, nil)
		}
		w.abandoned(o)
		return
	}
	if !w.active[o.LV.ID] && !slices.ContainsFunc(o.Layers, func(l *catalog.Layer) bool { return w.read[l.LV.ID] }) {
		return // hydration needs only the devices that blocks has added
	}
	real := w.realDevice(o.LV)
	w.add(wanted{device: real, table: blocks, readOnly: readOnly, of: o}, nil)
	w.layer(o, live, real)
	if w.active[o.LV.ID] {
		top.table = originOn(blocks.length(), real)
		w.add(top, nil)
	}
	for _, l := range slices.Backward(o.Layers[:len(o.Layers)-1]) {
		if !w.read[l.LV.ID] {
			continue
		}
		if below := w.Below(o, l); below != nil && !l.Lost {
			w.layer(o, l, w.snapDevice(below.LV))
		} else { // keep its device until it is closed
			w.keep(fmt.Errorf("snapshot %s/%s: %w", w.VG.Name, l.LV.Name, ErrLost), l.LV)
		}
	}
}

// untouchable returns the reason why the devices of a volume, and of volumes that read
// through it, must be left as they are; nil if there is none.
func (w *wantedSet) untouchable(o *catalog.Volume) error {
	if why := o.Theirs(); why != "" {
		return fmt.Errorf("volume %s/%s: %w: %s", w.VG.Name, o.LV.Name, ErrPrecondition, why)
	}
	return w.stuck[o.LV.ID]
}

// abandoned keeps the devices of lost layers that are still read, after lvm2 has removed
// the layers below.
func (w *wantedSet) abandoned(o *catalog.Volume) {
	for _, l := range o.Layers {
		if w.read[l.LV.ID] {
			why := fmt.Errorf("snapshot %s/%s: %w", w.VG.Name, l.LV.Name, ErrLost)
			w.keep(why, l.LV)
			w.kept[w.realDevice(o.LV).uuid] = why
		}
	}
}

// layer adds the devices of a layer that lies on origin.
func (w *wantedSet) layer(o *catalog.Volume, l *catalog.Layer, origin device) {
	if f, _ := w.FlatOf(o, l); f != nil {
		w.flat(o, l, f, origin)
		return
	}
	frozen, kind := l.Snap == nil, dm.Persistent
	snap, cow := w.snapDevice(l.LV), w.cowDevice(l.LV)
	if frozen && l.LV.ID == w.heir {
		frozen, kind = false, dm.PersistentOverflow
		// Only the fold may open or write the device. udev would assemble an array found in
		// the volume, and a scan could have the device open when the fold ends.
		snap.udev = udevCOW
	}
	store, err := w.linearTable(l.LV)
	w.add(wanted{device: cow, table: disks(store), readOnly: frozen, asIs: frozen, of: o}, err)
	d := wanted{device: snap, table: snapshotOn(l.Length, origin, cow, kind, l.Chunk), readOnly: frozen, of: o, layer: l}
	if !frozen {
		d.stretch = w.stretched(l.Store(o), store)
	}
	w.add(d, nil)
}

// flat adds the devices of a layer that is read by a flat store.
func (w *wantedSet) flat(o *catalog.Volume, l *catalog.Layer, f *catalog.Flat, origin device) {
	cow := w.cowDevice(f.LV)
	if w.asLoaded[cow.uuid] {
		w.add(wanted{device: cow, readOnly: true, once: true, of: o}, nil)
	} else {
		store, err := w.flatTable(o, f)
		w.add(wanted{device: cow, table: disks(store), readOnly: true, of: o}, err)
	}
	w.add(wanted{device: w.snapDevice(l.LV), table: snapshotOn(l.Length, origin, cow, dm.Persistent, f.Chunk), readOnly: true, of: o, layer: l}, nil)
}

// blocks returns the table of the device with the volume's content. For a fork the table has
// hydrated parts, the window, and parts that are not hydrated; blocks then also adds the
// fork's devices.
func (w *wantedSet) blocks(o *catalog.Volume) (symbolic, error) {
	own, err := w.linearTable(o.LV)
	if err != nil || !o.Forked() {
		return disks(own), err
	}
	from, source, err := w.Origin(o)
	if err != nil {
		return nil, err
	}
	if why := w.untouchable(source); why != nil {
		return nil, fmt.Errorf("snapshot %s: %w", from.LV.Name, why)
	}
	if w.LostOrigin(o) {
		return nil, fmt.Errorf("volume %s/%s: %w: the content that it reads through is lost", w.VG.Name, o.LV.Name, ErrLost)
	}
	fork, missing := w.forkDevice(o.LV), o.Hydrated.Missing(from.Length)
	w.overlay(o, fork, w.snapDevice(from.LV), from)
	x, copied := w.windows[o.LV.ID]
	to := cutTable(own, x.Start, x.End())
	if !copied || len(to) != 1 {
		return forkOn(own, missing, fork.uuid, nil), nil
	}
	d := wanted{device: w.device(o.LV, x.layer, udevReal), table: mirrorFrom(fork, x.Span, to[0].Target.(dm.Linear)), of: o}
	if !missing.Contains(x.Span) && !(o.Hydrated.Has(x.Span) && w.writtenBy(o, &d)) {
		return forkOn(own, missing, fork.uuid, nil), nil
	}
	w.add(d, nil)
	return forkOn(own, missing, fork.uuid, &windowOn{d.uuid, x.Span}), nil
}

// writtenBy reports whether all writes to o in the range of mirror d currently go through d.
// The copy is right only as long as this holds. A new mirror, or this mirror after a write
// has bypassed it, would copy the fork's old content over newer writes.
func (w *wantedSet) writtenBy(o *catalog.Volume, d *wanted) bool {
	mirror, user := w.now[d.uuid], w.now[w.contentDevice(o).uuid]
	if mirror == nil || user == nil || !user.Live {
		return false
	}
	runs := user.table
	if w.held[user.uuid] { // its next resume activates the loaded table
		runs = user.goesOn()
	}
	table, complete := d.table.bind(w.now.number)
	return complete && mirror.Live && mirror.table.Equal(table) && slices.Contains(devicesIn(runs), mirror.Device)
}

// overlay adds a snapshot device d above the device of layer l that keeps writes in o's store.
// The store is of kind overflow: if a write does not fit, only this write fails, and the
// earlier writes stay valid.
func (w *wantedSet) overlay(o *catalog.Volume, d, above device, l *catalog.Layer) {
	cow := w.cowDevice(o.Fork.LV)
	table, err := w.linearTable(o.Fork.LV)
	w.add(wanted{device: cow, table: disks(table), of: o}, err)
	w.add(wanted{
		device: d, table: snapshotOn(l.Length, above, cow, dm.PersistentOverflow, o.Fork.Chunk), of: o,
		stretch: w.stretched(&catalog.Store{LV: o.Fork.LV, Of: o, Chunk: o.Fork.Chunk, Length: l.Length, Fork: true}, table),
	}, nil)
}

// The kernel looks up chunks in a hash table. Its size is the number of chunks that the
// store has when the kernel constructs the snapshot, at most hashTable, and never changes
// (init_hash_tables in dm-snap.c). hashShared consecutive chunks of the origin always share
// a bucket.
const (
	hashTable  = 2 << 20 / 8
	hashShared = 256
)

// crowded reports whether a store is so short that its snapshot's hash table would have less
// than one bucket for hashShared chunks of the origin. Lookups would be slow after the store
// has grown.
func crowded(store, origin size.Sectors, chunk size.Sectors) bool {
	return store/chunk < min(hashTable, origin/chunk/hashShared)
}

// stretched extends a table to the given length with an error target.
func stretched(t dm.Table, length size.Sectors) dm.Table {
	if start := t.Length(); start < length {
		t = append(t, dm.Segment{Start: start, Length: length - start, Target: dm.ErrorTarget{}})
	}
	return t
}

// stretched returns the longer table of a store while the kernel constructs its snapshot; nil
// if the final table is long enough.
func (v *view) stretched(s *catalog.Store, table dm.Table) symbolic {
	if !crowded(table.Length(), s.Length, s.Chunk) {
		return nil
	}
	return disks(stretched(table, sectors(v, v.Largest(s))))
}

// reader adds the devices of a volume that shows a snapshot.
func (w *wantedSet) reader(o *catalog.Volume) {
	l, source, err := w.ReadFrom(o)
	if err == nil {
		err = w.untouchable(source)
	}
	if err == nil && slices.ContainsFunc(source.Path(l), func(x *catalog.Layer) bool { return x.Lost }) {
		err = fmt.Errorf("volume %s/%s: %w: the snapshot that it shows is lost", w.VG.Name, o.LV.Name, ErrLost)
	}
	if err != nil { // reads of a reader in use fail
		w.keep(err, o.Parts()...)
		return
	}
	below, top := w.snapDevice(l.LV), w.topDevice(o.LV)
	if o.Transient {
		if !w.active[o.LV.ID] {
			return
		}
		store, err := w.linearTable(o.LV)
		cow := w.cowDevice(o.LV)
		w.add(wanted{device: cow, table: disks(store), of: o}, err)
		w.add(wanted{device: top, table: snapshotOn(w.BytesOf(o.LV).Sectors(), below, cow, dm.Transient, o.Chunk), asIs: true, once: true, of: o}, nil)
		return
	}
	if o.Fork != nil { // the store with the replayed journal
		recovered := w.device(o.LV, layerRecovered, udevReal)
		w.overlay(o, recovered, below, l)
		below = recovered
	}
	if w.active[o.LV.ID] { // otherwise only the journal is replayed
		w.add(wanted{device: top, table: linearOn(l.Length, below.uuid, 0), readOnly: true, of: o}, nil)
	}
}
