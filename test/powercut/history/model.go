package history

import (
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Activity says whether a volume has its device.
type Activity int

// MaybeActive is for the verifier to find out.
const (
	Inactive Activity = iota
	Active
	MaybeActive
)

// Object is a volume or a snapshot.
type Object struct {
	ID       uint64
	Name     string
	Snapshot bool
	Of       uint64 // the volume that a snapshot was taken of; it may be deleted
	Certain  bool   // it exists; otherwise its creation or deletion was begun
	Size     size.Bytes
	Wanted   size.Bytes // the size of an expansion that was begun
	Content  Content
	Or       *Content // its other possible content as a whole, after an interruption
	Theirs   bool     // LVM2's own
	Adopting bool     // an adoption was begun, so it may be the pool's

	// Only for volumes.
	FS        bool // for a file system: blocks that were not written are unknown
	ReadOnly  bool
	Transient bool     // writes to it are lost with the machine
	Base      *Content // the content of a transient volume after that
	Active    Activity
}

// Shows reports whether the object has no content of its own, but reads a
// snapshot.
func (o *Object) Shows() bool { return o.ReadOnly || o.Transient }

// Compare returns an error if the observation is not possible. Otherwise it
// reports whether the observation is the object's other possible content.
func (o *Object) Compare(seen *Observation) (other bool, err error) {
	if err = o.Content.Compare(seen); err == nil || o.Or == nil {
		return false, err
	}
	if o.Or.Compare(seen) == nil {
		return true, nil
	}
	return false, err
}

// fresh returns the version of blocks that were never written.
func (o *Object) fresh() uint64 {
	if o.FS {
		return Unknown
	}
	return Zero
}

// Model is the state that follows from a history.
type Model struct {
	Objects map[uint64]*Object
	Calls   map[uint64]Event // intents and writes without an end
	Last    uint64           // the highest number of the sequence so far
}

// NewModel returns the model of an empty pool.
func NewModel() *Model {
	return &Model{Objects: map[uint64]*Object{}, Calls: map[uint64]Event{}}
}

// Next returns the next number of the sequence.
func (m *Model) Next() uint64 {
	m.Last++
	return m.Last
}

// Apply applies the next event. It returns an error if the history contradicts
// itself.
func (m *Model) Apply(e Event) error {
	m.Last = max(m.Last, e.ID, e.Call, e.Version)
	switch e.Kind {
	case Boot:
		clear(m.Calls)
		for _, o := range m.Objects {
			if o.Active = Inactive; o.Transient {
				o.Content, o.Or = o.Base.clone(), nil
			}
		}
		return nil
	case Opened:
		for n, c := range m.Calls {
			if c.Kind == Intent {
				delete(m.Calls, n)
			}
		}
		return nil
	case Intent, Write:
		if _, twice := m.Calls[e.Call]; twice {
			return fmt.Errorf("call %d begins twice", e.Call)
		}
	case Done, Failed, Wrote:
		if _, begun := m.Calls[e.Call]; !begun {
			return fmt.Errorf("call %d ends but never began", e.Call)
		}
	}
	switch e.Kind {
	case Intent:
		return m.intend(e)
	case Done, Failed:
		c := m.Calls[e.Call]
		delete(m.Calls, e.Call)
		if e.Kind == Failed {
			return m.failed(c)
		}
		return m.done(c)
	}
	if e.ID == 0 {
		return nil
	}
	o := m.Objects[e.ID]
	if o == nil {
		return fmt.Errorf("%s: object %d does not exist", e.Kind, e.ID)
	}
	switch e.Kind {
	case Write:
		m.write(o, e)
	case Wrote:
		w := m.Calls[e.Call]
		delete(m.Calls, e.Call)
		for b := w.Block; b < w.Block+w.Count; b++ {
			o.Content.set(b, w.leaves())
		}
	case Found:
		m.found(o, e)
	case Read:
		formatted := o.Content.Formatted && (o.Or == nil || o.Or.Formatted) // both may have the same bytes
		if e.Other {
			o.Content = *o.Or
		}
		o.Content.Formatted, o.Or = formatted || e.Other && o.Content.Formatted, nil
		for _, b := range e.Blocks {
			o.Content.set(int(b[0]), b[1])
		}
		o.Content.Since = 0
	}
	return nil
}

func (m *Model) intend(e Event) error {
	o := m.Objects[e.ID]
	from := m.Objects[e.From]
	switch e.Op {
	case Create, Restore, Clone, Snapshot, LVM2Create, LVM2Snapshot:
		blank := e.Op == Create || e.Op == LVM2Create
		if o != nil || !blank && from == nil {
			return fmt.Errorf("%s: object %d exists already, or object %d does not exist", e.Op, e.ID, e.From)
		}
		o = &Object{ID: e.ID, Name: e.Name, Snapshot: e.Op == Snapshot || e.Op == LVM2Snapshot, Of: e.From, Size: e.Size, FS: e.FS,
			ReadOnly: e.ReadOnly, Transient: e.Transient, Theirs: e.Op == LVM2Create || e.Op == LVM2Snapshot}
		m.Objects[e.ID] = o
		if blank {
			if o.Content = newContent(e.Size, o.fresh()); o.Theirs { // lvm2 wipes nothing
				o.Content = newContent(e.Size, Unknown)
			}
			break
		}
		o.Content = from.Content.clone()
		o.Content.resize(e.Size, o.fresh())
		o.Content.Since = 0
		if e.Op != Restore {
			o.Content.Since = m.Last + 1
			for _, c := range m.Calls {
				if c.Kind == Write && c.ID == e.From {
					o.Content.Since = min(o.Content.Since, c.Version)
				}
			}
		}
		if o.Transient {
			base := o.Content.clone()
			o.Base = &base
		}
	default:
		if o == nil {
			return fmt.Errorf("%s: object %d does not exist", e.Op, e.ID)
		}
		switch e.Op {
		case Expand:
			o.Wanted = e.Size
			o.Content.resize(e.Size, o.fresh())
		case Activate, Deactivate:
			o.Active = MaybeActive
		case Adopt, Import:
			for _, x := range m.withSnapshots(o) {
				x.Adopting = true
			}
		case Delete, Drop:
			o.Certain = false
			if o.Active == Active {
				o.Active = MaybeActive
			}
			if o.Transient { // the device is removed before the volume
				base := o.Base.clone()
				o.Or = &base
			}
		case Rollback:
			if from == nil {
				return fmt.Errorf("rollback of object %d: object %d does not exist", e.ID, e.From)
			}
			was := from.Content.clone()
			was.resize(o.Size, o.fresh())
			was.Since = 0
			o.Or = &was
		}
	}
	m.Calls[e.Call] = e
	return nil
}

// withSnapshots returns a logical volume of LVM2's and LVM2's snapshots of it.
func (m *Model) withSnapshots(o *Object) []*Object {
	all := []*Object{o}
	for _, x := range m.Objects {
		if x.Snapshot && x.Of == o.ID && x.Theirs {
			all = append(all, x)
		}
	}
	return all
}

func (m *Model) done(c Event) error {
	o := m.Objects[c.ID]
	switch c.Op {
	case Create, Restore, Clone, Snapshot, LVM2Snapshot:
		o.Certain = true
	case LVM2Create:
		o.Certain, o.Active = true, Active
	case Adopt, Import:
		for _, x := range m.withSnapshots(o) {
			x.Theirs, x.Adopting = false, false
		}
	case Expand:
		o.Size, o.Wanted = c.Size, 0
	case Format:
		o.Content.Formatted = true
	case Activate:
		o.Active = Active
	case Deactivate:
		o.Active = Inactive
	case Delete, Drop:
		delete(m.Objects, c.ID)
	case Rollback:
		o.Content, o.Or = *o.Or, nil
	}
	return nil
}

func (m *Model) failed(c Event) error {
	o := m.Objects[c.ID]
	switch c.Op {
	case Create, Restore, Clone, Snapshot, LVM2Create, LVM2Snapshot:
		delete(m.Objects, c.ID)
	case Adopt, Import:
		for _, x := range m.withSnapshots(o) {
			x.Adopting = false
		}
	case Expand:
		o.Wanted = 0
		o.Content.resize(o.Size, o.fresh())
	case Rollback:
		o.Or = nil
	default:
		return fmt.Errorf("%s of %d was refused: %s", c.Op, c.ID, c.Error)
	}
	return nil
}

// write records a write that begins. A snapshot or clone that is being cut from
// the volume may have the write or not.
func (m *Model) write(o *Object, e Event) {
	m.Calls[e.Call] = e
	o.Content.Since = 0
	into := []*Content{&o.Content}
	for _, c := range m.Calls {
		if c.Kind == Intent && (c.Op == Snapshot || c.Op == Clone || c.Op == LVM2Snapshot) && c.From == o.ID {
			cut := m.Objects[c.ID]
			if into = append(into, &cut.Content); cut.Base != nil {
				into = append(into, cut.Base)
			}
		}
	}
	for _, c := range into {
		for b := e.Block; b < e.Block+e.Count; b++ {
			c.begin(b, e.leaves())
		}
	}
}

// leaves returns the version that a write leaves in its blocks.
func (e Event) leaves() uint64 {
	if e.Op == Discard {
		return Unknown
	}
	return e.Version
}

func (m *Model) found(o *Object, e Event) {
	if e.Gone {
		delete(m.Objects, o.ID)
		return
	}
	o.Certain, o.Size, o.Wanted = true, e.Size, 0
	o.Theirs, o.Adopting = o.Theirs && !e.Ours, false
	o.Content.resize(e.Size, o.fresh())
	o.Active = Inactive
	if e.Active {
		o.Active = Active
	}
}
