package driver

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

const (
	idVersion  = "v1"
	maxID      = 128 // bytes in a string of a CSI message, CSI spec "Size Limits"
	maxNodeID  = 40
	maxPoolLen = 24
)

// id names a volume or snapshot for ever: "v1:<node>:<pool>:<logical volume>".
type id struct {
	node string // short form, see shortNode
	pool string
	lv   string
}

func (i id) String() string {
	return strings.Join([]string{idVersion, i.node, i.pool, i.lv}, ":")
}

// parseID reads an id. It returns false for a string that this driver did not
// make on any node.
func parseID(s string) (id, bool) {
	part := strings.Split(s, ":")
	if len(s) > maxID || len(part) != 4 || part[0] != idVersion {
		return id{}, false
	}
	i := id{node: part[1], pool: part[2], lv: part[3]}
	ok := len(i.node) <= maxNodeID && len(i.pool) <= maxPoolLen &&
		only(i.node, ".-") && only(i.pool, ".-") && only(i.lv, "+_.-")
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

// shortNode fits a node's name into ids and into a label value (at most 63
// bytes): names of more than 40 bytes become 31 bytes, a dash and 8 digits of
// their hash.
func shortNode(name string) string {
	if len(name) <= maxNodeID {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return fmt.Sprintf("%s-%s", name[:maxNodeID-9], hex.EncodeToString(sum[:4]))
}
