// Package handle has the names by which both roles of the driver know a volume
// or snapshot and the node that it is on: the ids in CSI messages, and the
// driver's own name.
package handle

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Driver is the driver's name in Kubernetes objects.
const Driver = "dmsnap.csi-dmsnap.github.io"

// TopologyKey is the key of the label that has the short form of a node's name.
const TopologyKey = "topology." + Driver + "/node"

// Max is the most bytes that a string of a CSI message may have, CSI
// specification, "Size Limits".
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

// ID names a volume or snapshot for ever: "v1:<node>:<pool>:<logical volume>".
type ID struct {
	Node string // short form, see ShortNode
	Pool string
	LV   string
}

func (i ID) String() string {
	return strings.Join([]string{version, i.Node, i.Pool, i.LV}, ":")
}

// Parse reads an id. It returns false for a string that this driver did not
// make on any node.
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

// only tells whether s is made of ASCII letters, digits and the given marks,
// and is not empty.
func only(s, marks string) bool {
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(marks, c) >= 0) {
			return false
		}
	}
	return s != ""
}

// CheckNode checks the full name of a node. CSI allows a node's id 256 bytes.
func CheckNode(name string) error {
	if len(name) > 256 || !only(name, marksNode) {
		return fmt.Errorf("node name %q: 1 to 256 letters, digits, dots and hyphens", name)
	}
	return nil
}

// ShortNode fits a node's name into ids and into a label value (at most 63
// bytes): names of more than 40 bytes become 31 bytes, a dash and 8 digits of
// their hash.
func ShortNode(name string) string {
	if len(name) <= maxNode {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return fmt.Sprintf("%s-%s", name[:maxNode-hashDigits-1], hex.EncodeToString(sum[:])[:hashDigits])
}
