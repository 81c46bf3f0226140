package dm

import (
	"fmt"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Status is a target's status. String prints it in the kernel's format.
type Status interface{ String() string }

// RawStatus is the status of a target without a status type of its own. It is
// empty for many targets, such as linear and snapshot-origin.
type RawStatus string

// String returns the status as the kernel printed it.
func (r RawStatus) String() string { return string(r) }

// SnapshotStatus is the status of a snapshot or snapshot-merge target. Either the
// numbers or one of the flags is set.
type SnapshotStatus struct {
	Used     size.Sectors // used part of the COW store, including Metadata
	Total    size.Sectors // length of the COW store
	Metadata size.Sectors // part of Used that holds no chunks; a merge is done when Metadata equals Used

	Invalid     bool // the snapshot is lost: its store was full, unreadable or unwritable
	Overflow    bool // a write to the snapshot failed because the store was full; the content is intact
	MergeFailed bool // an I/O error has stopped the merge
	NoUsage     bool // the store does not report its usage
}

const (
	statusInvalid     = "Invalid"
	statusOverflow    = "Overflow"
	statusMergeFailed = "Merge failed"
	statusNoUsage     = "Unknown"
)

// String prints s in the kernel's format: "2056/8192 16".
func (s SnapshotStatus) String() string {
	switch {
	case s.Invalid:
		return statusInvalid
	case s.Overflow:
		return statusOverflow
	case s.MergeFailed:
		return statusMergeFailed
	case s.NoUsage:
		return statusNoUsage
	}
	return fmt.Sprintf("%d/%d %d", s.Used, s.Total, s.Metadata)
}

// LegHealth is the state of a mirror's leg.
type LegHealth byte

// The states of a leg (device_status_char in drivers/md/dm-raid1.c).
const (
	LegAlive       LegHealth = 'A'
	LegWriteError  LegHealth = 'D'
	LegSyncError   LegHealth = 'S'
	LegReadError   LegHealth = 'R'
	LegFlushError  LegHealth = 'F'
	LegUnknownFail LegHealth = 'U'
)

// MirrorLeg is a leg in a MirrorStatus.
type MirrorLeg struct {
	Device Device
	Health LegHealth
}

// MirrorStatus is the status of a mirror.
type MirrorStatus struct {
	Legs          []MirrorLeg
	InSync, Total uint64 // regions
	Log           string // the log's status: "core", or another log's type, device and state
}

// Synced reports whether all regions are in sync and all legs are alive.
func (m MirrorStatus) Synced() bool {
	for _, l := range m.Legs {
		if l.Health != LegAlive {
			return false
		}
	}
	return m.InSync == m.Total
}

// String prints m in the kernel's format: "2 98:0 98:16 7/150 1 AA 1 core".
func (m MirrorStatus) String() string {
	var devices, health strings.Builder
	for _, l := range m.Legs {
		fmt.Fprintf(&devices, "%v ", l.Device)
		health.WriteByte(byte(l.Health))
	}
	return fmt.Sprintf("%d %s%d/%d 1 %s %d %s", len(m.Legs), devices.String(), m.InSync, m.Total,
		health.String(), len(strings.Fields(m.Log)), m.Log)
}

// ParseStatus parses the status text that the kernel prints for a target of type
// typ, such as "snapshot".
func ParseStatus(typ, text string) (Status, error) {
	words := strings.Fields(text)
	normal := strings.Join(words, " ")
	a := &args{words: words}
	var s Status
	switch typ {
	case "snapshot", "snapshot-merge":
		s = a.snapshotStatus(normal)
	case "mirror":
		s = a.mirrorStatus()
	default:
		return RawStatus(normal), nil
	}
	if err := a.end(); err != nil {
		return nil, fmt.Errorf("status %q of target %s: %w", text, typ, err)
	}
	return s, nil
}

func (a *args) snapshotStatus(text string) Status {
	var s SnapshotStatus
	switch text {
	case statusInvalid:
		s.Invalid = true
	case statusOverflow:
		s.Overflow = true
	case statusMergeFailed:
		s.MergeFailed = true
	case statusNoUsage:
		s.NoUsage = true
	default:
		used, total := a.fraction()
		return SnapshotStatus{Used: size.Sectors(used), Total: size.Sectors(total), Metadata: a.sectors()}
	}
	a.words = nil
	return s
}

func (a *args) mirrorStatus() Status {
	n := a.count()
	m := MirrorStatus{}
	for range n {
		m.Legs = append(m.Legs, MirrorLeg{Device: a.device()})
	}
	m.InSync, m.Total = a.fraction()
	if words := a.count(); words != 1 && a.err == nil {
		a.err = fmt.Errorf("%d words of health instead of 1", words)
	}
	health := a.next()
	if len(health) != n {
		if a.err == nil {
			a.err = fmt.Errorf("health %q of %d legs", health, n)
		}
		return m
	}
	for i := range m.Legs {
		m.Legs[i].Health = LegHealth(health[i])
	}
	m.Log = strings.Join(a.features(), " ")
	return m
}

// fraction reads a word such as "7/150".
func (a *args) fraction() (part, whole uint64) {
	w, rest, _ := strings.Cut(a.next(), "/")
	a.words = append([]string{w, rest}, a.words...)
	return a.number(), a.number()
}
