package dm

import (
	"fmt"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// SnapshotOrigin passes I/O to Origin. Before a write, Origin's snapshots save the
// chunks that the write overwrites
// (Documentation/admin-guide/device-mapper/snapshot.rst).
type SnapshotOrigin struct{ Origin Device }

// Persistence is the kind of a snapshot's COW store.
type Persistence string

// The kinds of snapshot stores.
const (
	// Persistent stores survive a reload. A full store invalidates its snapshot.
	Persistent Persistence = "P"
	// PersistentOverflow is Persistent with one difference: if a write to the
	// snapshot itself finds the store full, only that write fails, and the status
	// is Overflow.
	PersistentOverflow Persistence = "PO"
	// Transient stores have their index only in memory.
	Transient Persistence = "N"
)

// Snapshot is a writable snapshot of Origin. COW holds the snapshot's content of
// the chunks that were written, on Origin or on the snapshot, since the snapshot
// was made.
type Snapshot struct {
	Origin, COW Device
	Persistence Persistence
	Chunk       size.Sectors // a power of two
	Features    []string     // such as "discard_zeroes_cow"
}

// SnapshotMerge takes the place of the origin's SnapshotOrigin and copies the
// snapshot's chunks back to Origin.
type SnapshotMerge Snapshot

// Type returns "snapshot-origin".
func (SnapshotOrigin) Type() string { return "snapshot-origin" }

// Params returns the origin.
func (o SnapshotOrigin) Params() string { return o.Origin.String() }

// Type returns "snapshot".
func (Snapshot) Type() string { return "snapshot" }

// Params returns the origin, the COW store, the persistence, the chunk size and
// the features.
func (s Snapshot) Params() string {
	p := fmt.Sprintf("%v %v %s %d", s.Origin, s.COW, s.Persistence, s.Chunk)
	if len(s.Features) > 0 {
		p += fmt.Sprintf(" %d %s", len(s.Features), strings.Join(s.Features, " "))
	}
	return p
}

// Type returns "snapshot-merge".
func (SnapshotMerge) Type() string { return "snapshot-merge" }

// Params returns the parameters of a Snapshot with the same fields.
func (m SnapshotMerge) Params() string { return Snapshot(m).Params() }

func (a *args) snapshot() Snapshot {
	s := Snapshot{Origin: a.device(), COW: a.device(), Persistence: Persistence(a.next()), Chunk: a.sectors()}
	switch s.Persistence {
	case Persistent, PersistentOverflow, Transient:
	default:
		if a.err == nil {
			a.err = fmt.Errorf("persistence %q is not P, PO or N", string(s.Persistence))
		}
	}
	if f := a.features(); len(f) > 0 {
		s.Features = f
	}
	return s
}
