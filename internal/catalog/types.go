package catalog

import (
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

	LentTo string // POOL/NAME of the volume into which another pool copies this one; see pool/loan.go
}
