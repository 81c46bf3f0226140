package pool

import (
	"fmt"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// tagPrefix marks every tag of ours. LVM2 allows [A-Za-z0-9_+.-/=!:&#] in tags.
const tagPrefix = "dmsnap:"

// Keys of our tags, written dmsnap:KEY or dmsnap:KEY=VALUE.
const (
	tagRole        = "role"        // volume, layer, fork or trash: the logical volume is ours
	tagName        = "name"        // the CSI name
	tagMode        = "mode"        // a volume's Mode
	tagFS          = "fs"          // the file system type of a volume
	tagUnformatted = "unformatted" // the volume, or at a layer's cut its volume, never had a file system and was never given out as a block device: the only ones that are formatted
	tagRaw         = "raw"         // the volume was a block device until its mode changed: a file system on it may be a copy of another volume's
	tagReadOnly    = "readonly"    // made for readers only
	tagSource      = "source"      // KIND/LV that the content came from, and /POOL if that is another one
	tagCopying     = "copying"     // the volume is being copied from another pool: LOAN/SECTORS, the id of that pool's loan and how much is copied
	tagLent        = "lent"        // POOL/NAME of the volume that is copied from this one
	tagShared      = "shared"      // made for readers on several nodes as well as for writers
	tagAsked       = "asked"       // bytes that were asked for, if the volume, a layer's at its cut, has more
	tagCopy        = "copy"        // id of the layer that the volume still reads through
	tagHydrated    = "hydrated"    // sectors of it that were copied into the volume's own extents, from its beginning, and which of them were not (hydrated.String)
	tagReads       = "reads"       // id of the layer that a reader shows, as long as it exists
	tagTransient   = "transient"   // the reader keeps what is written to it as long as its device is there
	tagBegun       = "begun"       // the transient volume was activated
	tagReset       = "reset"       // it has lost what was written to it, and was activated again
	tagUnknown     = "unknown"     // extents of the volume, of a layer's at its cut, that may hold an earlier owner's bytes; see unknownText
	tagDeleted     = "deleted"     // the volume was deleted; its blocks stay for its snapshots
	tagFormer      = "former"      // name of the volume's logical volume that took the place of this one by a rollback: its snapshots are that volume's
	tagOf          = "of"          // id of the volume that a layer or a fork's store belongs to
	tagOrder       = "order"       // place of a layer in its volume's history
	tagCreated     = "created"     // time of the cut, nanoseconds since 1970
	tagLength      = "length"      // sectors of the volume at the cut
	tagChunk       = "chunk"       // sectors of a chunk of a layer's, fork's or transient volume's store
	tagUsed        = "used"        // sectors of a frozen layer's store that are in use: the rest was given back
	tagExact       = "exact"       // sectors of a frozen store below which it holds just what changed until the next cut; without a value all of it
	tagSuperset    = "superset"    // a layer's store holds more than what changed until the next cut: layers are folded into it
	tagOver        = "over"        // place of the layer that an adopted snapshot reads through: its store holds all that changed until then
	tagThrough     = "through"     // place of the last of the layers that were folded into a layer
	tagLost        = "lost"        // the layer's content is gone
	tagStatic      = "static"      // on a logical volume of LVM2's own: a static volume may name it
	tagClean       = "clean"       // on the group: free extents that we wiped, valid for one metadata generation
)

// knownTags are the keys that a logical volume of ours may have. A tag with another
// one is of a newer version, or a mistake: what it says is not known.
var knownTags = []string{
	tagRole, tagName, tagMode, tagFS, tagUnformatted, tagRaw, tagReadOnly, tagShared, tagAsked, tagSource, tagCopy, tagHydrated, tagReads, tagTransient, tagBegun, tagReset,
	tagUnknown, tagDeleted, tagFormer, tagOf, tagOrder, tagCreated, tagLength, tagChunk, tagUsed, tagExact, tagSuperset, tagOver, tagThrough, tagLost, tagStatic, tagCopying, tagLent,
}

// encodeTag maps any string into the alphabet of LVM2's tags: letters, digits
// and _+.-/ stay, every other byte becomes = and two hex digits.
func encodeTag(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; plainInTag(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "=%02x", c)
		}
	}
	return b.String()
}

func plainInTag(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("_+.-/", c) >= 0
}

// decodeTag is the inverse of encodeTag. It refuses what encodeTag never writes,
// so that two tags never mean the same string.
func decodeTag(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case plainInTag(c):
		case c == '=' && i+2 < len(s):
			hi, lo := unhex(s[i+1]), unhex(s[i+2])
			if hi < 0 || lo < 0 || plainInTag(byte(hi<<4|lo)) {
				return "", fmt.Errorf("tag value %q: bad escape at %d", s, i)
			}
			c = byte(hi<<4 | lo)
			i += 2
		default:
			return "", fmt.Errorf("tag value %q: unexpected byte at %d", s, i)
		}
		b.WriteByte(c)
	}
	return b.String(), nil
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}

// properties are the decoded tags of one logical volume.
type properties map[string]string

// readProperties decodes those of tags that are ours. odd says which of them
// makes the others doubtful: one that is given twice, of which the first counts,
// or one with a key that is not known.
func readProperties(tags []string) (p properties, odd, err error) {
	p = properties{}
	for _, t := range tags {
		rest, ours := strings.CutPrefix(t, tagPrefix)
		if !ours {
			continue
		}
		key, value, _ := strings.Cut(rest, "=")
		v, err := decodeTag(value)
		if err != nil {
			return nil, nil, err
		}
		if _, twice := p[key]; twice {
			odd = fmt.Errorf("tag %s%s is given twice", tagPrefix, key)
			continue
		}
		if !slices.Contains(knownTags, key) {
			odd = fmt.Errorf("tag %s%s is not known to this version", tagPrefix, key)
		}
		p[key] = v
	}
	return p, odd, nil
}

// idsIn returns the ids that tags of ours name by these keys, one by one: also
// where the tags together make no sense.
func idsIn(tags []string, keys ...string) []lvm2.ID {
	var out []lvm2.ID
	for _, t := range tags {
		rest, ours := strings.CutPrefix(t, tagPrefix)
		key, value, _ := strings.Cut(rest, "=")
		if !ours || !slices.Contains(keys, key) {
			continue
		}
		if id, err := lvm2.ParseID(value); err == nil {
			out = append(out, id)
		}
	}
	return out
}

// tag returns the tag that says key without a value, or with one.
func tag(key string, value ...string) string {
	if len(value) == 0 {
		return tagPrefix + key
	}
	return tagPrefix + key + "=" + encodeTag(value[0])
}

// setTag returns tags with ours of that key replaced by the given value.
func setTag(tags []string, key string, value ...string) []string {
	return append(dropTags(tags, key), tag(key, value...))
}

// dropTags returns a copy of tags without ours of those keys.
func dropTags(tags []string, keys ...string) []string {
	out := make([]string, 0, len(tags)+1)
next:
	for _, t := range tags {
		if rest, ours := strings.CutPrefix(t, tagPrefix); ours {
			key, _, _ := strings.Cut(rest, "=")
			for _, k := range keys {
				if k == key {
					continue next
				}
			}
		}
		out = append(out, t)
	}
	return out
}
