package pool

import (
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Mode is the way in which a volume is used.
type Mode string

// The two ways to use a volume.
const (
	Filesystem Mode = "filesystem"
	Block      Mode = "block"
)

// SourceKind is the kind of a volume's source.
type SourceKind string

// The kinds of sources.
const (
	FromNothing  SourceKind = ""
	FromSnapshot SourceKind = "snapshot"
	FromVolume   SourceKind = "volume"
)

// Source is the origin of a volume's first content.
type Source struct {
	Kind SourceKind `json:"kind"`
	LV   string     `json:"lv"` // name of the logical volume of the snapshot or volume
}

// VolumeSpec is the request of CreateVolume.
type VolumeSpec struct {
	Name   string     // the CSI name: any string of at most 128 bytes
	Size   size.Bytes // least size, rounded up to whole extents; 0 for the source's size, or 1 GiB without a source
	Least  size.Bytes // least size for the file system, if Size is smaller
	Limit  size.Bytes // largest size; 0 for no limit
	Mode   Mode
	FSType string // file system to make, for mode Filesystem: ext4, xfs or btrfs
	Source Source
	// SourcePool is the pool of Source; "" for the volume's own pool. See CopyVolume.
	SourcePool string
	// ReadOnly makes a reader that is never writable. It shows its source on a read-only
	// device, takes no extents, and has the source's size.
	ReadOnly bool
	// Shared allows readers on several nodes, besides writers.
	Shared bool
	// Transient makes a scratch copy of the source, of the same size, that is never
	// hydrated. Its writes are lost with the machine's memory.
	Transient bool

	lentTo string // POOL/NAME of the volume into which another pool copies this one; see loan.go
}

// Volume is a volume of the pool.
type Volume struct {
	Name       string // the CSI name
	LV         string // the logical volume's name; with node and pool it identifies the volume
	Size       size.Bytes
	Mode       Mode
	FSType     string
	ReadOnly   bool
	Source     Source
	SourcePool string     // pool of Source, if it is another pool of the node
	Formatted  bool       // never format it: it has a file system, was made from a source, or was handed out as a block device
	Unwiped    size.Bytes // size of the extents that may hold an earlier owner's bytes
	Foreign    bool       // LVM2's own: it has no mode, and can be used but not changed
	Transient  bool       // its writes are lost with the machine's memory
	Copied     bool       // made from a source, or written as a block device: it may carry the identity of another volume's file system
	Shared     bool       // made for readers on several nodes, besides writers
}

// Snapshot is a snapshot of a volume.
type Snapshot struct {
	Name    string     // the CSI name
	LV      string     // the logical volume's name of its layer
	Volume  string     // the name of the volume's logical volume
	Mode    Mode       // of the volume
	FSType  string     // of the volume
	Size    size.Bytes // size of the volume when the snapshot was cut
	Asked   size.Bytes // size in the request for the volume; a restore needs no more
	Created time.Time
	Lost    bool // the content is gone (ErrLost)
}

// Capacity is the pool's room for new volumes.
type Capacity struct {
	Total     size.Bytes // all extents of the pool
	Free      size.Bytes // room for new volumes: wiped free extents without the reserve for layers
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

// Condition is one problem of a volume or a pool.
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
