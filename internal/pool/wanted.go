package pool

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

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
	// asIs is set if the kernel's device may differ in readOnly. The store of a frozen layer
	// stays writable from its time as the live layer. A volume's own device is read-only
	// while it is published only to readers.
	asIs bool
	// once is set if the device keeps a table that it has. Another table would lose writes.
	once bool
	of   *volume // owner of the device
	// layer is the layer of a snapshot device; nil for other devices.
	layer *layer
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
	asLoaded map[string]bool    // UUIDs of flat stores' devices that have the right table
	stuck    map[lvm2.ID]error  // volumes that could not be brought in line and are left as they are, with the error
	strays   map[string]error   // UUIDs of devices without a volume that are left as they are, with the error
}

// wantedSet is the set of devices that a family should have.
type wantedSet struct {
	*view
	use
	running
	now     kernel           // the family's current devices
	devices []wanted         // ordered from the lowest device up
	kept    map[string]error // UUIDs of devices that are left as they are, if they exist, with the reason
}

// want computes the wanted devices of a family. Its first member is the root of the family
// (see members). k are the family's current devices.
func (v *view) want(members []*volume, u use, r running, k kernel) *wantedSet {
	w := &wantedSet{view: v, use: u.clone(), running: r, now: k, kept: map[string]error{}}
	maps.Copy(w.kept, r.strays)
	for _, o := range slices.Backward(members) { // readers before the volumes that they read through
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

// needs marks the layers, and the content, through which the users of o read.
func (w *wantedSet) needs(o *volume) {
	for _, l := range o.layers { // a layer lies on a newer layer, which comes later in the list
		if w.read[l.lv.ID] {
			w.content[o.lv.ID] = true
			if below := w.below(o, l); below != nil {
				w.read[below.lv.ID] = true
			}
		}
	}
	if _, copied := w.windows[o.lv.ID]; w.active[o.lv.ID] || copied {
		w.content[o.lv.ID] = true
	}
	if from := w.layers[o.from()]; from != nil && w.content[o.lv.ID] && o.theirs() == "" {
		w.read[from.lv.ID] = true
	}
}

// keep marks all devices of the logical volumes as kept, with the reason why.
func (w *wantedSet) keep(why error, lvs ...*lvm2.LV) {
	for _, lv := range lvs {
		for _, layer := range allLayers {
			w.kept[lvm2.DMUUID(w.vg.ID, lv.ID, layer)] = why
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
func (w *wantedSet) volume(o *volume) {
	if why := w.untouchable(o); why != nil {
		w.keep(why, o.parts()...)
		return
	}
	if o.copying != nil { // the copy job uses its device
		w.kept[w.realDevice(o.lv).uuid] = fmt.Errorf("volume %s/%s: %w: it is being copied", w.vg.Name, o.lv.Name, ErrPrecondition)
	}
	if !w.content[o.lv.ID] {
		return
	}
	if o.reading() {
		w.reader(o)
		return
	}
	blocks, err := w.blocks(o)
	if err != nil {
		w.keep(err, o.parts()...)
		return
	}
	live, readOnly := o.live(), readOnlyLV(o.lv)
	top := wanted{device: w.topDevice(o.lv), table: blocks, readOnly: readOnly, asIs: !readOnly, of: o}
	if live == nil {
		if w.active[o.lv.ID] {
			w.add(top, nil)
		}
		w.abandoned(o)
		return
	}
	if !w.active[o.lv.ID] && !slices.ContainsFunc(o.layers, func(l *layer) bool { return w.read[l.lv.ID] }) {
		return // hydration needs only the devices that blocks has added
	}
	real := w.realDevice(o.lv)
	w.add(wanted{device: real, table: blocks, readOnly: readOnly, of: o}, nil)
	w.layer(o, live, real)
	if w.active[o.lv.ID] {
		top.table = originOn(blocks.length(), real)
		w.add(top, nil)
	}
	for _, l := range slices.Backward(o.layers[:len(o.layers)-1]) {
		if !w.read[l.lv.ID] {
			continue
		}
		if below := w.below(o, l); below != nil && !l.lost {
			w.layer(o, l, w.snapDevice(below.lv))
		} else { // keep its device until it is closed
			w.keep(fmt.Errorf("snapshot %s/%s: %w", w.vg.Name, l.lv.Name, ErrLost), l.lv)
		}
	}
}

// untouchable returns the reason why the devices of a volume, and of volumes that read
// through it, must be left as they are; nil if there is none.
func (w *wantedSet) untouchable(o *volume) error {
	if why := o.theirs(); why != "" {
		return fmt.Errorf("volume %s/%s: %w: %s", w.vg.Name, o.lv.Name, ErrPrecondition, why)
	}
	return w.stuck[o.lv.ID]
}

// abandoned keeps the devices of lost layers that are still read, after lvm2 has removed
// the layers below.
func (w *wantedSet) abandoned(o *volume) {
	for _, l := range o.layers {
		if w.read[l.lv.ID] {
			why := fmt.Errorf("snapshot %s/%s: %w", w.vg.Name, l.lv.Name, ErrLost)
			w.keep(why, l.lv)
			w.kept[w.realDevice(o.lv).uuid] = why
		}
	}
}

// layer adds the devices of a layer that lies on origin.
func (w *wantedSet) layer(o *volume, l *layer, origin device) {
	if f, _ := w.flatOf(o, l); f != nil {
		w.flat(o, l, f, origin)
		return
	}
	frozen, kind := l.snap == nil, dm.Persistent
	snap, cow := w.snapDevice(l.lv), w.cowDevice(l.lv)
	if frozen && l.lv.ID == w.heir {
		frozen, kind = false, dm.PersistentOverflow
		// Only the fold may open or write the device. udev would assemble an array found in
		// the volume, and a scan could have the device open when the fold ends.
		snap.udev = udevCOW
	}
	store, err := w.linearTable(l.lv)
	w.add(wanted{device: cow, table: disks(store), readOnly: frozen, asIs: frozen, of: o}, err)
	d := wanted{device: snap, table: snapshotOn(l.length, origin, cow, kind, l.chunk), readOnly: frozen, of: o, layer: l}
	if !frozen {
		d.stretch = w.stretched(l.store(o), store)
	}
	w.add(d, nil)
}

// flat adds the devices of a layer that is read by a flat store.
func (w *wantedSet) flat(o *volume, l *layer, f *flat, origin device) {
	cow := w.cowDevice(f.lv)
	if w.asLoaded[cow.uuid] {
		w.add(wanted{device: cow, readOnly: true, once: true, of: o}, nil)
	} else {
		store, err := w.flatTable(o, f)
		w.add(wanted{device: cow, table: disks(store), readOnly: true, of: o}, err)
	}
	w.add(wanted{device: w.snapDevice(l.lv), table: snapshotOn(l.length, origin, cow, dm.Persistent, f.chunk), readOnly: true, of: o, layer: l}, nil)
}

// blocks returns the table of the device with the volume's content. For a fork the table has
// hydrated parts, the window, and parts that are not hydrated; blocks then also adds the
// fork's devices.
func (w *wantedSet) blocks(o *volume) (symbolic, error) {
	own, err := w.linearTable(o.lv)
	if err != nil || !o.forked() {
		return disks(own), err
	}
	from, source, err := w.origin(o)
	if err != nil {
		return nil, err
	}
	if why := w.untouchable(source); why != nil {
		return nil, fmt.Errorf("snapshot %s: %w", from.lv.Name, why)
	}
	if w.lostOrigin(o) {
		return nil, fmt.Errorf("volume %s/%s: %w: the content that it reads through is lost", w.vg.Name, o.lv.Name, ErrLost)
	}
	fork, missing := w.forkDevice(o.lv), o.hydrated.missing(from.length)
	w.overlay(o, fork, w.snapDevice(from.lv), from)
	x, copied := w.windows[o.lv.ID]
	to := cutTable(own, x.start, x.end())
	if !copied || len(to) != 1 {
		return forkOn(own, missing, fork.uuid, nil), nil
	}
	d := wanted{device: w.device(o.lv, x.layer, udevReal), table: mirrorFrom(fork, x.span, to[0].Target.(dm.Linear)), of: o}
	if !missing.contains(x.span) && !(o.hydrated.has(x.span) && w.writtenBy(o, &d)) {
		return forkOn(own, missing, fork.uuid, nil), nil
	}
	w.add(d, nil)
	return forkOn(own, missing, fork.uuid, &windowOn{d.uuid, x.span}), nil
}

// writtenBy reports whether all writes to o in the range of mirror d currently go through d.
// Only then is the copy right. Otherwise the mirror would copy the fork's old content over
// newer writes.
func (w *wantedSet) writtenBy(o *volume, d *wanted) bool {
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
func (w *wantedSet) overlay(o *volume, d, above device, l *layer) {
	cow := w.cowDevice(o.fork.lv)
	table, err := w.linearTable(o.fork.lv)
	w.add(wanted{device: cow, table: disks(table), of: o}, err)
	w.add(wanted{
		device: d, table: snapshotOn(l.length, above, cow, dm.PersistentOverflow, o.fork.chunk), of: o,
		stretch: w.stretched(&store{lv: o.fork.lv, of: o, chunk: o.fork.chunk, length: l.length, fork: true}, table),
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
func (v *view) stretched(s *store, table dm.Table) symbolic {
	if !crowded(table.Length(), s.length, s.chunk) {
		return nil
	}
	return disks(stretched(table, sectors(v, v.largest(s))))
}

// reader adds the devices of a volume that shows a snapshot.
func (w *wantedSet) reader(o *volume) {
	l, source, err := w.readFrom(o)
	if err == nil {
		err = w.untouchable(source)
	}
	if err == nil && slices.ContainsFunc(source.path(l), func(x *layer) bool { return x.lost }) {
		err = fmt.Errorf("volume %s/%s: %w: the snapshot that it shows is lost", w.vg.Name, o.lv.Name, ErrLost)
	}
	if err != nil { // reads of a reader in use fail
		w.keep(err, o.parts()...)
		return
	}
	below, top := w.snapDevice(l.lv), w.topDevice(o.lv)
	if o.transient {
		if !w.active[o.lv.ID] {
			return
		}
		store, err := w.linearTable(o.lv)
		cow := w.cowDevice(o.lv)
		w.add(wanted{device: cow, table: disks(store), of: o}, err)
		w.add(wanted{device: top, table: snapshotOn(w.bytesOf(o.lv).Sectors(), below, cow, dm.Transient, o.chunk), asIs: true, once: true, of: o}, nil)
		return
	}
	if o.fork != nil { // the store with the replayed journal
		recovered := w.device(o.lv, layerRecovered, udevReal)
		w.overlay(o, recovered, below, l)
		below = recovered
	}
	if w.active[o.lv.ID] { // otherwise only the journal is replayed
		w.add(wanted{device: top, table: linearOn(l.length, below.uuid, 0), readOnly: true, of: o}, nil)
	}
}

// members returns the volumes of each family by the name of the family's root. A volume
// comes before the volumes that read through it.
func (v *view) members() map[string][]*volume { return v.membersOf(maps.Values(v.volumes)) }

// membersOf is members for some volumes.
func (v *view) membersOf(some iter.Seq[*volume]) map[string][]*volume {
	out, depth := map[string][]*volume{}, map[*volume]int{}
	for o := range some {
		line := v.family(o.lv.Name)
		root := line[len(line)-1]
		out[root], depth[o] = append(out[root], o), len(line)
	}
	for _, family := range out {
		slices.SortFunc(family, func(a, b *volume) int {
			if n := depth[a] - depth[b]; n != 0 {
				return n
			}
			return strings.Compare(a.lv.Name, b.lv.Name)
		})
	}
	return out
}
