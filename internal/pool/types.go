package pool

import (
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Types that requests and the metadata share.
type (
	Mode       = catalog.Mode
	SourceKind = catalog.SourceKind
	Source     = catalog.Source
	VolumeSpec = catalog.VolumeSpec
	ImportSpec = catalog.ImportSpec
	Deed       = catalog.Deed
	Finding    = catalog.Finding
)

// The modes of volumes, and what a volume can be made from.
const (
	Filesystem   = catalog.Filesystem
	Block        = catalog.Block
	FromNothing  = catalog.FromNothing
	FromSnapshot = catalog.FromSnapshot
	FromVolume   = catalog.FromVolume
)

// NeverWiped explains why a volume with a file system, or its snapshot, cannot be a block
// device, and what the user can do.
const NeverWiped = catalog.NeverWiped

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
	Free      size.Bytes // room for new volumes: free extents, without trash, less the reserve for layers
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

// advice is the remedy for conditions whose message names none.
const advice = "the remedy depends on the cause; docs/limitations.md and the log of the node's driver say more"

// Finding returns the condition as Verify reports it. It splits the message at the first
// semicolon: the problem comes before it, and the remedy after it.
func (c Condition) Finding(where string) Finding {
	f := Finding{Reason: c.Reason, Where: where, What: c.Message, Do: advice}
	if what, do, says := strings.Cut(c.Message, "; "); says {
		f.What, f.Do = what, do
	}
	return f
}
