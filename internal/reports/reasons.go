package reports

import (
	"slices"
	"strings"
	"unicode"
)

// MaxMessage is the most bytes of a message in an Event, by the API server's limit.
const MaxMessage = 1024

// ReasonOther replaces a reason that is not listed.
const ReasonOther = "OtherCondition"

// reasons are all reasons that a node reports. The controller uses no other reason in
// an Event, so that a node that an attacker has taken over cannot choose the words by
// which people filter and alert.
var reasons = []string{
	"Adopted", "DeviceMissing", "DiskNotAnswering", "DiskRefused", "DuplicateDisk", "ExtentsInUse", "FilesystemErrors", "FilesystemReadOnly", "FilesystemShutDown", "FilesystemUnreachable",
	"ForkLost", "ForkStopped", "HydrationFailing", "Imported",
	"MetadataDegraded", "MetadataFull", "MixedBlockSizes", "ModuleMissing", "NotGrown", "NotStaged",
	"PoolFull", "PoolUnavailable", "RolledBack", "SnapshotLost", "SnapshotReadDeep", "SnapshotSpaceLow", "SourceLost", "SourceUnreadable",
	"SpaceNotReclaimed", "SpaceReclaimed", "TransientLost", "TransientRestarted", "UnknownTags", "WritersHeld",
}

// Reasons returns all reasons that a node reports.
func Reasons() []string { return slices.Clone(reasons) }

// deeds are the reasons for what people did by commands. The controller creates one
// Event for each deed, even if the node's process restarts.
var deeds = []string{"Adopted", "Imported", "RolledBack"}

// IsDeed reports whether a reason is for what somebody did by a command.
func IsDeed(reason string) bool { return slices.Contains(deeds, reason) }

// Listed returns a reason and message for an Event. It moves a reason that is not
// listed into the message, and replaces it by ReasonOther.
func Listed(reason, message string) (string, string) {
	if slices.Contains(reasons, reason) {
		return reason, message
	}
	return ReasonOther, Bounded(reason) + ": " + message
}

// Bounded returns a text as one line of at most MaxMessage bytes.
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
