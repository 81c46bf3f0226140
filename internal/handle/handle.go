// Package handle has the ids of volumes and snapshots in CSI messages, which name the
// node, the pool and the logical volume, and the driver's own name.
package handle

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Driver is the driver's name in Kubernetes objects.
const Driver = "dmsnap.csi-dmsnap.github.io"

// TopologyKey is the key of the label with the short form of a node's name, see
// ShortNode.
const TopologyKey = "topology." + Driver + "/node"

// Max is the maximum length of a string in a CSI message, in bytes (CSI specification,
// "Size Limits").
const Max = 128

const (
	version    = "v1"
	maxNode    = 40
	maxPool    = 24
	marksNode  = ".-"
	marksPool  = ".-"
	marksLV    = "+_.-"
	hashDigits = 8
)

// ID is the id of a volume or snapshot, which never changes:
// "v1:<node>:<pool>:<logical volume>".
type ID struct {
	Node string // short form, see ShortNode
	Pool string
	LV   string
}

func (i ID) String() string {
	return strings.Join([]string{version, i.Node, i.Pool, i.LV}, ":")
}

// Parse parses an id. It returns false if s is not an id of this driver.
func Parse(s string) (ID, bool) {
	part := strings.Split(s, ":")
	if len(s) > Max || len(part) != 4 || part[0] != version {
		return ID{}, false
	}
	i := ID{Node: part[1], Pool: part[2], LV: part[3]}
	ok := len(i.Node) <= maxNode && len(i.Pool) <= maxPool &&
		only(i.Node, marksNode) && only(i.Pool, marksPool) && only(i.LV, marksLV)
	return i, ok
}

// only reports whether s is not empty and consists of ASCII letters, digits and
// marks.
func only(s, marks string) bool {
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(marks, c) >= 0) {
			return false
		}
	}
	return s != ""
}

// CheckNode returns an error if name cannot be the full name of a node. CSI allows
// 256 bytes for the id of a node.
func CheckNode(name string) error {
	if len(name) > 256 || !only(name, marksNode) {
		return fmt.Errorf("invalid node name %q; it must have 1 to 256 letters, digits, dots and hyphens", name)
	}
	return nil
}

// ShortNode returns the form of a node's name that fits into ids and into the value of
// a label (at most 63 bytes). A name of more than 40 bytes becomes its first 31 bytes,
// a hyphen and 8 digits of its hash.
func ShortNode(name string) string {
	if len(name) <= maxNode {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return fmt.Sprintf("%s-%s", name[:maxNode-hashDigits-1], hex.EncodeToString(sum[:])[:hashDigits])
}
