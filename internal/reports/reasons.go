package reports

import (
	"slices"
	"strings"
	"unicode"
)

// MaxMessage is how many bytes of a message are told: what the API server
// allows an Event.
const MaxMessage = 1024

// ReasonOther is told in place of a reason that is not listed.
const ReasonOther = "OtherCondition"

// reasons are all that a node reports. The controller makes no Event of another
// one: a node that somebody has taken over does not choose the words that
// people filter and alert by.
var reasons = []string{
	"Adopted", "DeviceMissing", "DiskRefused", "DuplicateDisk", "ExtentsInUse", "FilesystemErrors", "FilesystemReadOnly", "FilesystemShutDown", "FilesystemUnreachable",
	"ForkLost", "ForkStopped", "HydrationFailing", "Imported",
	"MetadataDegraded", "MetadataFull", "MixedBlockSizes", "ModuleMissing", "NotGrown", "NotStaged",
	"PoolFull", "PoolUnavailable", "RolledBack", "SnapshotLost", "SnapshotReadDeep", "SnapshotSpaceLow", "SourceLost", "SourceUnreadable",
	"SpaceNotReclaimed", "SpaceReclaimed", "TransientLost", "TransientRestarted", "UnknownTags", "WritersHeld",
}

// Reasons returns all that a node reports.
func Reasons() []string { return slices.Clone(reasons) }

// deeds are those of what people did by commands. Each is told once, whatever becomes
// of the node's process.
var deeds = []string{"Adopted", "Imported", "RolledBack"}

// IsDeed says whether a reason is of what somebody did.
func IsDeed(reason string) bool { return slices.Contains(deeds, reason) }

// Listed returns a reason and its message as they are told: a reason that is
// not listed becomes a part of the message.
func Listed(reason, message string) (string, string) {
	if slices.Contains(reasons, reason) {
		return reason, message
	}
	return ReasonOther, Bounded(reason) + ": " + message
}

// Bounded returns what is told of a text: one line, and not too long.
func Bounded(text string) string {
	if len(text) > MaxMessage {
		text = strings.ToValidUTF8(text[:MaxMessage-3], "") + "..."
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
}
