package history

import (
	"fmt"
	"maps"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Content is the possible content of the blocks of a volume or snapshot.
type Content struct {
	Versions []uint64         // the version of each block that is not in Maybe
	Maybe    map[int][]uint64 // blocks that may hold one of several versions, ascending
	// Since is set for a copy or snapshot that was cut from a volume while it
	// was written, one write after the other. The writes from version Since on
	// ran during the cut. If one of these is in the content, so are all earlier
	// ones.
	Since uint64
	// Formatted is set once a file system was made. Until then nobody writes,
	// and activating the volume zeroes its ends.
	Formatted bool
}

func newContent(length size.Bytes, version uint64) Content {
	c := Content{Maybe: map[int][]uint64{}}
	c.resize(length, version)
	return c
}

func (c *Content) clone() Content {
	return Content{Versions: slices.Clone(c.Versions), Maybe: maps.Clone(c.Maybe), Since: c.Since, Formatted: c.Formatted}
}

// resize shortens the content, or lengthens it by blocks of the given version.
func (c *Content) resize(length size.Bytes, version uint64) {
	n := int(length / Block)
	for b := range c.Maybe {
		if b >= n {
			delete(c.Maybe, b)
		}
	}
	for len(c.Versions) < n {
		c.Versions = append(c.Versions, version)
	}
	c.Versions = c.Versions[:n]
}

// begin records that from now on the block may have the version.
func (c *Content) begin(block int, version uint64) {
	if block < len(c.Versions) {
		c.Maybe[block] = append(slices.Clone(c.candidates(block)), version)
	}
}

// set records that the block certainly has the version.
func (c *Content) set(block int, version uint64) {
	c.Versions[block] = version
	delete(c.Maybe, block)
}

func (c *Content) candidates(block int) []uint64 {
	if m := c.Maybe[block]; m != nil {
		return m
	}
	return c.Versions[block : block+1]
}

// Observation is the content that was read from a volume.
type Observation struct {
	seen [][]uint64 // versions of each block
}

// Add adds the next bytes of the volume; their number is a multiple of Block.
func (o *Observation) Add(data []byte) {
	for ; len(data) > 0; data = data[Block:] {
		o.seen = append(o.seen, versionsOf(data[:Block], len(o.seen)))
	}
}

// Compare returns an error that names the blocks of the observation that are
// not possible. The observation may be longer than the content; the rest is not
// compared.
func (c *Content) Compare(o *Observation) error {
	if len(o.seen) < len(c.Versions) {
		return fmt.Errorf("it has %d blocks, not %d", len(o.seen), len(c.Versions))
	}
	var wrong []string
	newest := uint64(0) // the last write during the cut that is in the content
	for b := range c.Versions {
		may := c.candidates(b)
		if slices.Contains(may, Unknown) {
			continue
		}
		for _, v := range o.seen[b] {
			if !slices.Contains(may, v) {
				wrong = append(wrong, fmt.Sprintf("block %d has %s, want one of %v", b, version(v), may))
			} else if c.Since > 0 && v >= c.Since {
				newest = max(newest, v)
			}
		}
	}
	for b, may := range c.Maybe {
		if slices.Contains(may, Unknown) || c.Since == 0 {
			continue
		}
		last := uint64(0) // the last write to this block that must be in, because newest is
		for _, v := range may {
			if v >= c.Since && v < newest {
				last = v
			}
		}
		for _, v := range o.seen[b] {
			if v < last {
				wrong = append(wrong, fmt.Sprintf("block %d has %s: the content has write %d but not the earlier write %d, so it is not of one instant", b, version(v), newest, last))
			}
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	if len(wrong) > 8 {
		return fmt.Errorf("%d blocks are wrong: %v …", len(wrong), wrong[:8])
	}
	return fmt.Errorf("%d blocks are wrong: %v", len(wrong), wrong)
}

func version(v uint64) string {
	if v == Unknown {
		return "foreign bytes"
	}
	return fmt.Sprint(v)
}

// Resolve returns the blocks of c that had several possible versions, each with
// the one version that was seen.
func (c *Content) Resolve(o *Observation) [][2]uint64 {
	var out [][2]uint64
	for b := range c.Maybe {
		if s := o.seen[b]; len(s) == 1 && s[0] != Unknown {
			out = append(out, [2]uint64{uint64(b), s[0]})
		}
	}
	return out
}
