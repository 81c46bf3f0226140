package pool

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Inspection is the state of a pool on the disks and in the kernel at one moment.
// Sizes are in bytes.
type Inspection struct {
	PoolState
	Volumes []VolumeState `json:"volumes"` // sorted by LV
}

// PoolState is how a pool's space is used, in bytes. Foreign is the rest of Total
// after Free, Blocks, Stores and Trash. It includes the free extents of a disk that
// is missing, or from which LVM2 must not allocate.
type PoolState struct {
	Pool        string     `json:"pool"`
	VolumeGroup string     `json:"volumeGroup"`
	ID          string     `json:"volumeGroupID"`
	Generation  uint64     `json:"generation"` // LVM2's seqno
	ExtentSize  size.Bytes `json:"extentSize"`
	Total       size.Bytes `json:"total"`
	Free        size.Bytes `json:"free"`
	Room        size.Bytes `json:"room"`    // part of Free that new volumes may take
	Blocks      size.Bytes `json:"blocks"`  // of volumes, including deleted volumes with snapshots
	Stores      size.Bytes `json:"stores"`  // of snapshots, and of volumes that are being hydrated
	Trash       size.Bytes `json:"trash"`   // of deleted volumes and snapshots, not wiped yet
	Foreign     size.Bytes `json:"foreign"` // of logical volumes that are not ours, and extents that nobody can use
	Unwiped     size.Bytes `json:"unwiped"` // part of Free that may not hold zeroes
	Clean       Cleaning   `json:"clean"`   // when Unwiped is wiped
	Metadata    Metadata   `json:"metadata"`
	Disks       []Disk     `json:"disks"`
	LeftOut     []LeftOut  `json:"leftOut,omitempty"` // devices that match the configuration, but cannot be added
}

// Disk is a physical volume.
type Disk struct {
	Device  string     `json:"device"` // "" if missing
	ID      string     `json:"id"`
	Size    size.Bytes `json:"size"`                       // of its extents
	Block   size.Bytes `json:"logicalBlockSize,omitempty"` // 0 if missing
	Missing bool       `json:"missing,omitempty"`
}

// VolumeState is a volume with its history and its devices. Sizes are in bytes.
type VolumeState struct {
	Pool       string        `json:"pool"`
	Name       string        `json:"name"` // the CSI name; "" if it is deleted
	LV         string        `json:"lv"`
	Size       size.Bytes    `json:"size"`
	Mode       Mode          `json:"mode"`
	FSType     string        `json:"fsType,omitempty"`
	ReadOnly   bool          `json:"readOnly,omitempty"`
	Transient  bool          `json:"transient,omitempty"` // its data is lost with the machine's memory
	Shows      string        `json:"shows,omitempty"`     // the logical volume of the snapshot that it shows and never copies
	State      string        `json:"state"`               // ready, hydrating, copying, deleted, former, lost; or lvm2 while LVM2 works on it
	Hydration  *Hydration    `json:"hydration,omitempty"` // progress; nil if nothing is being copied
	FormerOf   string        `json:"formerOf,omitempty"`  // LV of the volume that it was before a rollback
	Source     *Source       `json:"source,omitempty"`
	SourcePool string        `json:"sourcePool,omitempty"` // pool of Source, if it is another pool
	Deed       *Deed         `json:"deed,omitempty"`       // the last command that somebody ran on it
	Unwiped    size.Bytes    `json:"unwiped,omitempty"`    // part that may hold an earlier owner's bytes
	Active     bool          `json:"active"`
	OpenCount  int           `json:"openCount"`
	Mounts     []string      `json:"mounts,omitempty"` // visible to this process
	Layers     []LayerState  `json:"layers"`           // newest first, then snapshots that LVM2 took
	Devices    []DeviceState `json:"devices"`          // of the volume and its layers, sorted by name
	// Plan is what a driver that starts now would do to the devices of the volume's
	// family.
	Plan []PlanStep `json:"-"`
}

// PlanStep is one step of a plan.
type PlanStep struct {
	Do       string   `json:"do"` // clear, create, load, suspend, resume, used, rename or remove
	Device   string   `json:"device"`
	Table    []string `json:"table,omitempty"` // table to load, in the format of dmsetup; <name> for a device without a number yet
	ReadOnly bool     `json:"readOnly,omitempty"`
	To       string   `json:"to,omitempty"` // new name of a rename
}

// Hydration is the progress of copying a restored volume, in bytes.
type Hydration struct {
	Done  size.Bytes `json:"done"`
	Total size.Bytes `json:"total"`
}

// The states of a volume and of a layer.
const (
	StateReady     = "ready"
	StateHydrating = "hydrating" // it is usable, and reads through a snapshot
	StateCopying   = "copying"   // it is incomplete, because it is being copied from another pool
	StateDeleted   = "deleted"   // its blocks are kept for its snapshots
	StateFormer    = "former"    // a volume's content before a rollback: its blocks are kept for its snapshots
	StateLive      = "live"      // the kernel copies originals into it
	StateFrozen    = "frozen"    // a snapshot that reads through newer ones
	StateInner     = "inner"     // a deleted snapshot that older snapshots or restored volumes read through
	StateLost      = "lost"      // the content is gone
	StateLVM2      = "lvm2"      // managed by LVM2; the driver leaves it alone
)

// LayerState is a snapshot, or a layer that remains of a deleted snapshot. Sizes
// are in bytes.
type LayerState struct {
	Pool     string      `json:"pool"`
	Name     string      `json:"name"` // the CSI name; "" if it has none
	LV       string      `json:"lv"`
	Volume   string      `json:"volume"` // the volume's logical volume
	State    string      `json:"state"`
	Position int         `json:"position,omitempty"` // 1 is the newest, which reads through the volume
	Order    uint64      `json:"order,omitempty"`    // order of the cut, in the metadata
	Created  time.Time   `json:"created,omitzero"`
	Size     size.Bytes  `json:"size"` // of the volume at the cut
	Store    size.Bytes  `json:"store"`
	Used     *size.Bytes `json:"used,omitempty"` // part of Store; nil if unknown
	Chunk    size.Bytes  `json:"chunk"`
	Active   bool        `json:"active"`
	Exact    bool        `json:"exact,omitempty"`    // the chunks that changed until the next cut are recorded
	Superset bool        `json:"superset,omitempty"` // the store holds more than those chunks, because layers were folded into it, or because LVM2 took the snapshot
	Readers  []string    `json:"readers,omitempty"`  // logical volumes that read through it, or show it
}

// DeviceState is a device of the kernel.
type DeviceState struct {
	Name      string   `json:"name"`
	Number    string   `json:"number"` // "254:3"
	OpenCount int      `json:"openCount"`
	ReadOnly  bool     `json:"readOnly,omitempty"`
	Suspended bool     `json:"suspended,omitempty"`
	Table     []string `json:"table"`            // in the format of dmsetup
	Status    string   `json:"status,omitempty"` // of a snapshot
	Uses      []string `json:"uses"`             // numbers of the devices below it
}

// Inspect reads a pool's metadata from the disks and its devices from the kernel.
// It changes nothing, and takes only LVM2's shared lock; the pool may be open in
// another process. Errors: ErrUnavailable, or the end of ctx.
func Inspect(ctx context.Context, c Config, o Options) (*Inspection, error) {
	i, err := newInspector(ctx, c, o, lvm2.FindVGReadOnly)
	if err != nil {
		return nil, err
	}
	defer i.close()
	l, err := i.look(ctx)
	if err != nil {
		return nil, err
	}
	mounts, err := mountPoints()
	if err != nil {
		return nil, err
	}
	out := &Inspection{PoolState: l.poolState(), Volumes: []VolumeState{}}
	out.LeftOut = i.leftOut(l.view)
	plans := l.plans()
	for _, o := range l.view.Volumes.All() {
		s := l.volumeState(o)
		s.Plan = plans[o]
		if top := l.at(o.LV, ""); top != nil {
			s.Mounts = mounts[top.Device]
		}
		out.Volumes = append(out.Volumes, s)
	}
	for _, s := range l.foreignOrigins() {
		if top := l.at(l.view.VG.LV(s.LV), ""); top != nil {
			s.Mounts = mounts[top.Device]
		}
		out.Volumes = append(out.Volumes, s)
	}
	slices.SortFunc(out.Volumes, func(a, b VolumeState) int { return strings.Compare(a.LV, b.LV) })
	return out, nil
}

// plans returns the plan of each volume's family.
func (l *look) plans() map[*catalog.Volume][]PlanStep {
	out := map[*catalog.Volume][]PlanStep{}
	families := l.view.split(l.devices)
	for root, members := range l.view.Members() {
		k := families[root]
		w := l.view.want(members, l.view.inUse(members, k, true), l.view.seenRunning(members, k), k)
		plan := []PlanStep{}
		for _, s := range w.plan(members, k) {
			x := PlanStep{Do: string(s.do), Device: s.name, ReadOnly: s.readOnly, To: s.to}
			if s.do == stepLoad {
				x.Table = s.table.text(k.number, func(uuid string) string { return w.wantedAt(device{uuid: uuid}).name })
			}
			plan = append(plan, x)
		}
		for _, o := range members {
			out[o] = plan
		}
	}
	return out
}

func (l *look) poolState() PoolState {
	v := l.view
	s := PoolState{
		Pool: l.pool.name, VolumeGroup: v.VG.Name, ID: v.VG.ID.String(), Generation: v.VG.Seqno, ExtentSize: v.ExtentSize(),
		Free: size.Bytes(v.Free.Size()) * v.ExtentSize(), Room: l.pool.capacity(v).Free, Unwiped: v.UnwipedFree(), Clean: l.pool.cleaning(v), Metadata: l.pool.metadata(v), Disks: []Disk{},
	}
	for _, pv := range v.VG.PVs {
		d := Disk{Device: pv.Device, ID: string(pv.ID), Size: size.Bytes(pv.PECount) * v.ExtentSize(), Block: pv.BlockSize, Missing: pv.Missing()}
		s.Total += d.Size
		s.Disks = append(s.Disks, d)
	}
	s.Blocks, s.Stores, s.Trash = v.Shares()
	s.Foreign = s.Total - min(s.Total, s.Free+s.Blocks+s.Stores+s.Trash)
	return s
}

func (l *look) volumeState(o *catalog.Volume) VolumeState {
	v := l.view
	s := VolumeState{
		Pool: l.pool.name, Name: o.Name, LV: o.LV.Name, Size: v.BytesOf(o.LV), Mode: o.Mode, FSType: o.FS, ReadOnly: o.ReadOnly, Transient: o.Transient,
		State: StateReady, Unwiped: v.UnwipedSize(o), Layers: []LayerState{},
	}
	switch {
	case o.Theirs() != "":
		s.State = StateLVM2
	case o.Former != "":
		s.State, s.FormerOf = StateFormer, o.Former
	case o.Deleted:
		s.State = StateDeleted
	case o.Copying != nil:
		s.State, s.Hydration = StateCopying, &Hydration{Done: o.Copying.Done.Bytes(), Total: s.Size}
	case o.Forked():
		s.State = StateHydrating
	case o.Reading():
		if x, source, err := v.ReadFrom(o); err != nil {
			s.State = StateLost
		} else if s.Shows = x.LV.Name; l.lostAt(source, x) {
			s.State = StateLost
		}
	}
	if o.Source.Kind != FromNothing {
		s.Source, s.SourcePool = &o.Source, o.SourcePool
	}
	s.Deed = catalog.DeedOf(o.LV)
	if from := v.Layers.Get(o.CopyOf); from != nil {
		s.Hydration = &Hydration{Done: (from.Length - o.Hydrated.Missing(from.Length).Size()).Bytes(), Total: from.Length.Bytes()}
	}
	if top := l.at(o.LV, ""); top != nil {
		s.Active, s.OpenCount = top.Live, top.OpenCount
	}
	lost := map[*catalog.Layer]bool{}
	for k, x := range slices.Backward(o.Layers) {
		state := l.layerState(o, x)
		state.Position = len(o.Layers) - k
		if lost[o.NextOf(k)] {
			state.State = StateLost // lost with a newer layer that it reads through
		}
		lost[x] = state.State == StateLost
		s.Layers = append(s.Layers, state)
	}
	s.Layers = append(s.Layers, l.lvm2Snapshots(o.LV)...)
	s.Devices = l.devicesOfLVs(o.LV.Name, s.Layers)
	if o.Fork != nil {
		s.Devices = append(s.Devices, l.devicesOfLVs(o.Fork.LV.Name, nil)...)
	}
	for _, f := range o.Flats {
		s.Devices = append(s.Devices, l.devicesOfLVs(f.LV.Name, nil)...)
	}
	return s
}

// lostAt reports whether a layer's content is lost according to the metadata or the
// kernel.
func (l *look) lostAt(o *catalog.Volume, x *catalog.Layer) bool {
	return slices.ContainsFunc(o.Path(x), func(y *catalog.Layer) bool {
		d := l.at(y.LV, "")
		return y.Lost || d != nil && d.status != nil && d.status.Invalid
	})
}

func (l *look) layerState(o *catalog.Volume, x *catalog.Layer) LayerState {
	s := LayerState{
		Pool: l.pool.name, Name: x.Name, LV: x.LV.Name, Volume: o.LV.Name, State: StateFrozen, Order: x.Order, Created: x.Created,
		Size: x.Length.Bytes(), Store: l.view.BytesOf(x.LV), Chunk: x.Chunk.Bytes(), Exact: x.Exact && !x.Superset, Superset: x.Superset,
	}
	switch {
	case x.Lost:
		s.State = StateLost
	case x.Snap != nil:
		s.State = StateLive
	case !x.Named:
		s.State = StateInner
	}
	if d := l.at(x.LV, ""); d != nil {
		s.Active = d.Live
		if f, _ := l.view.FlatOf(o, x); f != nil { // the kernel's status is the flat store's
		} else if status := d.status; status != nil && !status.Invalid && !status.Overflow && !status.NoUsage {
			used := status.Used.Bytes()
			s.Used = &used
		} else if status != nil && status.Invalid {
			s.State = StateLost
		}
	}
	if s.Used == nil && x.Trimmed {
		used := x.Used.Bytes()
		s.Used = &used
	}
	for _, other := range l.view.Volumes.All() {
		if other.From() == x.LV.ID {
			s.Readers = append(s.Readers, other.LV.Name)
		}
	}
	slices.Sort(s.Readers)
	return s
}

// foreignOrigins returns the logical volumes that have snapshots, but are not the
// pool's. csi-dmsnap adopt makes them volumes.
func (l *look) foreignOrigins() []VolumeState {
	var out []VolumeState
	for _, lv := range l.view.VG.LVs {
		if !l.view.IsTheirs(lv) {
			continue
		}
		layers := l.lvm2Snapshots(lv)
		if len(layers) == 0 {
			continue
		}
		s := VolumeState{
			Pool: l.pool.name, LV: lv.Name, Size: l.view.BytesOf(lv), ReadOnly: catalog.ReadOnlyLV(lv), State: StateLVM2,
			Layers: layers, Devices: []DeviceState{},
		}
		if top := l.at(lv, ""); top != nil {
			s.Active, s.OpenCount = top.Live, top.OpenCount
		}
		s.Devices = l.devicesOfLVs(lv.Name, layers)
		out = append(out, s)
	}
	return out
}

// devicesOfLVs returns the devices of a volume and of its layers, sorted by name.
func (l *look) devicesOfLVs(volume string, layers []LayerState) []DeviceState {
	own, out := map[string]bool{volume: true}, []DeviceState{}
	for _, x := range layers {
		own[x.LV] = true
	}
	for _, d := range l.devices {
		id, _, _ := catalog.SplitUUID(l.view.VG.ID, d.uuid)
		if lv := l.view.VG.LVByID(lvm2.ID(id)); lv != nil && own[lv.Name] {
			out = append(out, d.state())
		}
	}
	slices.SortFunc(out, func(a, b DeviceState) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// lvm2Snapshots returns the snapshots that LVM2 took of a logical volume.
func (l *look) lvm2Snapshots(o *lvm2.LV) []LayerState {
	var out []LayerState
	for _, hidden := range l.view.VG.LVs {
		seg := catalog.SnapshotSegment(hidden)
		if seg == nil || seg.Origin != o.Name {
			continue
		}
		store := l.view.VG.LV(seg.COWStore)
		if store == nil || l.view.Layers.Get(store.ID) != nil {
			continue
		}
		s := LayerState{
			Pool: l.pool.name, LV: store.Name, Volume: o.Name, State: StateLVM2, Created: store.CreationTime,
			Size: l.view.BytesOf(hidden), Store: l.view.BytesOf(store), Chunk: seg.ChunkSize.Bytes(),
		}
		if d := l.at(store, ""); d != nil {
			s.Active = d.Live
			if d.status != nil && d.status.Total != 0 {
				used := d.status.Used.Bytes()
				s.Used = &used
			}
		}
		out = append(out, s)
	}
	return out
}
