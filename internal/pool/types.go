package pool

import (
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Mode tells how a volume is used.
type Mode string

// The two ways to use a volume.
const (
	Filesystem Mode = "filesystem"
	Block      Mode = "block"
)

// SourceKind tells what a volume was made from.
type SourceKind string

// What a volume can be made from.
const (
	FromNothing  SourceKind = ""
	FromSnapshot SourceKind = "snapshot"
	FromVolume   SourceKind = "volume"
)

// Source is the content that a volume started with.
type Source struct {
	Kind SourceKind `json:"kind"`
	LV   string     `json:"lv"` // name of the snapshot's or volume's logical volume
}

// VolumeSpec is what CreateVolume is asked for.
type VolumeSpec struct {
	Name   string     // the CSI name: any string of at most 128 bytes
	Size   size.Bytes // at least this; rounded up to whole extents; 0 takes the source's size or 1 GiB
	Least  size.Bytes // what a volume is given whose request is smaller: its file system needs that
	Limit  size.Bytes // at most this; 0 means no limit
	Mode   Mode
	FSType string // file system to make, for mode Filesystem: ext4, xfs or btrfs
	Source Source
	// SourcePool is the pool that Source is in; "" is the volume's own. See CopyVolume.
	SourcePool string
	// ReadOnly: only readers will ever use it. It shows its source on a read-only
	// device and takes no room; it has the source's size.
	ReadOnly bool
	// Shared: readers on several nodes may use it as well as writers.
	Shared bool
	// Transient: a scratch copy of its source, of the same size, that is never
	// copied. What is written to it is lost with the machine's memory.
	Transient bool

	lentTo string // POOL/NAME of the volume that another pool copies from this one; see loan.go
}

// Volume is a volume of the pool.
type Volume struct {
	Name       string // the CSI name
	LV         string // the logical volume's name: with node and pool it identifies the volume
	Size       size.Bytes
	Mode       Mode
	FSType     string
	ReadOnly   bool
	Source     Source
	SourcePool string     // that Source is in, if that is another pool of the node
	Formatted  bool       // there may be something on it: it has a file system, was made from something, or was given out as a block device; never format it
	Unwiped    size.Bytes // what of it may hold an earlier owner's bytes
	Foreign    bool       // LVM2's own: it has no mode, and can be used but not changed
	Transient  bool       // what is written to it is lost with the machine's memory
	Copied     bool       // it was made from a source, or written as a block device: it may carry the identity of another volume's file system
	Shared     bool       // was made for readers on several nodes as well as for writers
}

// Snapshot is a snapshot of a volume.
type Snapshot struct {
	Name    string     // the CSI name
	LV      string     // the logical volume's name of its layer
	Volume  string     // the logical volume's name of the volume it was taken of
	Mode    Mode       // of that volume
	FSType  string     // of that volume
	Size    size.Bytes // size of the volume when the snapshot was cut
	Asked   size.Bytes // what had been asked for that: as much is enough for a volume made of the snapshot
	Created time.Time
	Lost    bool // the content is gone (ErrLost)
}

// Capacity is the pool's room for new volumes.
type Capacity struct {
	Total     size.Bytes // all extents of the pool
	Free      size.Bytes // what new volumes may take: wiped free extents less the reserve for layers
	MaxVolume size.Bytes // the largest volume that can be created now
}

// Severity of a Condition.
type Severity string

// The severities of CSI 1.13's volume health.
const (
	Degraded     Severity = "degraded"
	Inaccessible Severity = "inaccessible"
	DataLoss     Severity = "data loss"
)

// Condition is one thing that is wrong with a volume or a pool.
type Condition struct {
	Severity Severity
	Reason   string // CamelCase, for programs: SnapshotLost, SnapshotSpaceLow, DeviceMissing
	Message  string
}

// advice is what to do where a condition's message does not say it.
const advice = "the remedy depends on the cause; docs/limitations.md and the log of the node's driver say more"

// Finding returns the condition as Verify tells it. Messages say first what is wrong, and
// after a semicolon what to do.
func (c Condition) Finding(where string) Finding {
	f := Finding{Reason: c.Reason, Where: where, What: c.Message, Do: advice}
	if what, do, says := strings.Cut(c.Message, "; "); says {
		f.What, f.Do = what, do
	}
	return f
}
