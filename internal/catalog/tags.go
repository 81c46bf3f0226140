package catalog

import (
	"fmt"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// tagPrefix begins every tag of the driver. LVM2 allows [A-Za-z0-9_+.-/=!:&#] in tags.
const tagPrefix = "dmsnap:"

// The keys of the driver's tags, written dmsnap:KEY or dmsnap:KEY=VALUE.
const (
	tagRole        = "role"        // volume, layer, fork, flat or trash; its presence marks a logical volume of the driver
	tagName        = "name"        // the CSI name
	tagMode        = "mode"        // a volume's Mode
	tagFS          = "fs"          // the file system type of a volume
	tagUnformatted = "unformatted" // the volume, or a layer's volume at the cut, never had a file system and was never handed out as a block device; only such volumes are formatted
	tagRaw         = "raw"         // the volume was a block device until its mode changed; its file system may be a copy of another volume's
	tagReadOnly    = "readonly"    // a read-only volume
	tagSource      = "source"      // KIND/LV of the source, and /POOL if the source is in another pool
	tagCopying     = "copying"     // a running copy from another pool: LOAN/SECTORS, the id of the loan in the other pool and the copied sectors
	tagLent        = "lent"        // POOL/NAME of the volume into which this one is copied
	tagShared      = "shared"      // readers on several nodes may use the volume, besides writers
	tagAsked       = "asked"       // bytes in the request, if the volume (of a layer: at the cut) has more
	tagCopy        = "copy"        // id of the layer that a fork still reads through
	tagHydrated    = "hydrated"    // sectors of a fork, from its beginning, that are in its own extents, and the parts left out (Hydrated.String)
	tagReads       = "reads"       // id of the layer that a reader shows
	tagTransient   = "transient"   // a writable reader; its writes last as long as its device
	tagBegun       = "begun"       // the transient volume was activated
	tagReset       = "reset"       // the transient volume lost its writes, and was activated again
	tagUnknown     = "unknown"     // logical extents of the volume (of a layer: at the cut) that may hold an earlier owner's bytes; see unknownText
	tagDeleted     = "deleted"     // the volume was deleted; its blocks stay for its snapshots
	tagFormer      = "former"      // name of the logical volume that replaced this volume in a rollback; this volume's snapshots count as snapshots of the new one
	tagOf          = "of"          // id of the volume that a layer, a fork's store or a flat store belongs to
	tagOrder       = "order"       // place of a layer in its volume's history
	tagCreated     = "created"     // time of the cut, in nanoseconds since 1970
	tagLength      = "length"      // sectors of the volume at the cut
	tagChunk       = "chunk"       // sectors of a chunk of the store of a layer, a fork, a flat store or a transient volume
	tagUsed        = "used"        // used sectors of a trimmed layer's store; of a flat store: sectors of header and areas, once written
	tagExact       = "exact"       // sectors of a frozen store below which it has exactly the chunks that changed until the next cut; without a value the whole store
	tagSuperset    = "superset"    // the layer's store has more chunks than changed until the next cut, because layers were folded into it, or because LVM2 took the snapshot
	tagOver        = "over"        // place of the layer that an adopted snapshot reads through; of a flat store: id of the layer below
	tagThrough     = "through"     // place of the last layer that was folded into the layer
	tagLost        = "lost"        // the layer's content is gone
	tagStatic      = "static"      // on a logical volume of LVM2's own: a static volume may name it
	tagClean       = "clean"       // on the group: free extents that the driver wiped, valid for one metadata generation
)

// knownTags are the keys that a logical volume of the driver may have. A tag with another key
// belongs to a newer release, or is a mistake; its meaning is not known.
var knownTags = []string{
	tagRole, tagName, tagMode, tagFS, tagUnformatted, tagRaw, tagReadOnly, tagShared, tagAsked, tagSource, tagCopy, tagHydrated, tagReads, tagTransient, tagBegun, tagReset,
	tagUnknown, tagDeleted, tagFormer, tagOf, tagOrder, tagCreated, tagLength, tagChunk, tagUsed, tagExact, tagSuperset, tagOver, tagThrough, tagLost, tagStatic, tagCopying, tagLent,
}

// encodeTag maps any string into the alphabet of LVM2's tags. Letters, digits and _+.-/
// stay; every other byte becomes = and two hex digits.
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

// decodeTag is the inverse of encodeTag. It refuses text that encodeTag never writes, so two
// different tags never mean the same string.
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

// properties are the decoded tags of one logical volume, by key.
type properties map[string]string

// readProperties decodes the driver's tags among tags. odd is set if a tag makes the others
// doubtful: a key is given twice (the first counts), or is not known.
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

// idsIn returns the ids in the driver's tags with the given keys. It works even if the tags
// together make no sense.
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

// Tag returns the tag with key and, if given, a value.
func Tag(key string, value ...string) string {
	if len(value) == 0 {
		return tagPrefix + key
	}
	return tagPrefix + key + "=" + encodeTag(value[0])
}

// SetTag returns a copy of tags in which key has the given value.
func SetTag(tags []string, key string, value ...string) []string {
	return append(DropTags(tags, key), Tag(key, value...))
}

// DropTags returns a copy of tags without the driver's tags with the given keys.
func DropTags(tags []string, keys ...string) []string {
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
