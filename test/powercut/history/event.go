package history

import "github.com/csi-dmsnap/csi-dmsnap/pkg/size"

// Kind says what an Event is.
type Kind string

// The kinds of events. An Intent or Write is on the disk before what it
// announces begins; without its Done, Failed or Wrote that may have happened or
// not.
const (
	Boot    Kind = "boot"    // a new machine: no volume is active
	Theirs  Kind = "theirs"  // lvm2 alone has activated all; Count volumes and snapshots were compared
	Opening Kind = "opening" // a driver begins to open the pool
	Opened  Kind = "opened"  // it is open: what former drivers began is over
	Checked Kind = "checked" // all that was found is as it must be
	Load    Kind = "load"    // the load begins; Last if the machine goes on until it is cut
	Killed  Kind = "killed"  // the driver was killed
	Alive   Kind = "alive"   // now and then: the machine runs
	Intent  Kind = "intent"  // an operation
	Done    Kind = "done"
	Failed  Kind = "failed" // it was refused and must have changed nothing
	Write   Kind = "write"
	Wrote   Kind = "wrote"
	Found   Kind = "found" // how an interrupted operation turned out
	Read    Kind = "read"  // which of several possible contents some blocks have
)

// Op is an operation of the pool.
type Op string

// The operations.
const (
	Create     Op = "create"   // a blank volume
	Restore    Op = "restore"  // a volume from a snapshot
	Clone      Op = "clone"    // a volume from a volume
	Snapshot   Op = "snapshot" // of a volume
	Expand     Op = "expand"
	Format     Op = "format"
	Activate   Op = "activate"
	Deactivate Op = "deactivate"
	Delete     Op = "delete"   // a volume
	Drop       Op = "drop"     // a snapshot
	Rollback   Op = "rollback" // a volume to one of its snapshots
)

// Event is one line of the history. Ids, calls and versions are numbers from
// one sequence.
type Event struct {
	At   int64  `json:"at"` // milliseconds since the program's start
	Kind Kind   `json:"kind"`
	Op   Op     `json:"op,omitempty"`
	ID   uint64 `json:"id,omitempty"`   // the volume or snapshot
	Call uint64 `json:"call,omitempty"` // joins an intent and its end

	Name     string     `json:"name,omitempty"`
	From     uint64     `json:"from,omitempty"` // what it is made of
	Size     size.Bytes `json:"size,omitempty"`
	FS       bool       `json:"fs,omitempty"`
	ReadOnly bool       `json:"ro,omitempty"`

	Transient bool `json:"transient,omitempty"`

	Block   int    `json:"block,omitempty"`
	Count   int    `json:"count,omitempty"`
	Version uint64 `json:"version,omitempty"`

	Gone   bool        `json:"gone,omitempty"`
	Active bool        `json:"active,omitempty"`
	Other  bool        `json:"other,omitempty"` // a volume has what it may have instead
	Last   bool        `json:"last,omitempty"`
	Blocks [][2]uint64 `json:"blocks,omitempty"` // block and version
	Error  string      `json:"error,omitempty"`
}
