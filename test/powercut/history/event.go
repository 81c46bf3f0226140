package history

import "github.com/csi-dmsnap/csi-dmsnap/pkg/size"

// Kind is the kind of an Event.
type Kind string

// The kinds of events. An Intent or Write is on the disk before the operation
// or write begins. Without a matching Done, Failed or Wrote, the operation or
// write may have happened or not.
const (
	Boot    Kind = "boot"    // a new machine: no volume is active
	Theirs  Kind = "theirs"  // lvm2 activated the group before any driver; Count volumes and snapshots were compared
	Opening Kind = "opening" // a driver begins to open the pool
	Opened  Kind = "opened"  // the pool is open: operations of earlier drivers have ended
	Checked Kind = "checked" // the verifier found no fault
	Load    Kind = "load"    // the load begins; Last if it runs until the power is cut
	Killed  Kind = "killed"  // the driver was killed
	Alive   Kind = "alive"   // written regularly: the machine runs
	Intent  Kind = "intent"  // an operation
	Done    Kind = "done"
	Failed  Kind = "failed" // the operation was refused and must have changed nothing
	Write   Kind = "write"
	Wrote   Kind = "wrote"
	Found   Kind = "found" // the outcome of an interrupted operation
	Read    Kind = "read"  // the content of blocks that had several possible ones
)

// Op is an operation of the pool.
type Op string

// The operations.
const (
	Create     Op = "create"   // a blank volume
	Restore    Op = "restore"  // a volume from a snapshot
	Clone      Op = "clone"    // a volume from a volume
	Snapshot   Op = "snapshot" // a snapshot of a volume
	Expand     Op = "expand"
	Format     Op = "format"
	Activate   Op = "activate"
	Deactivate Op = "deactivate"
	Delete     Op = "delete"   // a volume
	Drop       Op = "drop"     // a snapshot
	Rollback   Op = "rollback" // a volume to one of its snapshots
	Discard    Op = "discard"  // of a Write: the blocks then have any bytes

	LVM2Create   Op = "lvcreate"   // a logical volume by lvm2, active
	LVM2Snapshot Op = "lvsnapshot" // a snapshot of a logical volume of LVM2's, by lvm2
	Adopt        Op = "adopt"      // a logical volume of LVM2's becomes a volume, with its snapshots
	Import       Op = "import"     // the same, without snapshots
)

// Event is one line of the history. Ids, calls and versions are numbers from
// one sequence.
type Event struct {
	At   int64  `json:"at"` // milliseconds since the program's start
	Kind Kind   `json:"kind"`
	Op   Op     `json:"op,omitempty"`
	ID   uint64 `json:"id,omitempty"`   // the volume or snapshot
	Call uint64 `json:"call,omitempty"` // the same for an intent and its end

	Name     string     `json:"name,omitempty"`
	From     uint64     `json:"from,omitempty"` // the volume or snapshot that it is made from
	Size     size.Bytes `json:"size,omitempty"`
	FS       bool       `json:"fs,omitempty"`
	ReadOnly bool       `json:"ro,omitempty"`

	Transient bool `json:"transient,omitempty"`

	Block   int    `json:"block,omitempty"`
	Count   int    `json:"count,omitempty"`
	Version uint64 `json:"version,omitempty"`

	Gone   bool        `json:"gone,omitempty"`
	Ours   bool        `json:"ours,omitempty"` // what was LVM2's own is the pool's
	Active bool        `json:"active,omitempty"`
	Other  bool        `json:"other,omitempty"` // a volume has its other possible content
	Last   bool        `json:"last,omitempty"`
	Blocks [][2]uint64 `json:"blocks,omitempty"` // block and version
	Error  string      `json:"error,omitempty"`
}
