package lvm2

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// contentsVolumeGroup is the value of contents in every metadata text.
const contentsVolumeGroup = "Text Format Volume Group"

// ParseVG parses a metadata text, from a disk (up to its NUL) or from a file of
// vgcfgbackup.
//
// Errors: ErrDamaged, ErrUnknownStatus.
func ParseVG(text []byte) (*VG, error) {
	nodes, err := parseText(string(text))
	if err != nil {
		return nil, err
	}
	vg := &VG{}
	d := &decoder{of: "metadata text"}
	d.distinct(nodes)
	if d.text(nodes, "contents") != contentsVolumeGroup || d.number(nodes, "version") != 1 {
		d.failf("contents or version is not the value of an LVM2 volume group")
	}
	var section *node
	for i := range nodes {
		if n := &nodes[i]; n.section && section == nil {
			section = n
			vg.top = append(vg.top, entry{key: vgEntry})
		} else {
			vg.top = append(vg.top, entry{n.key, n.source})
		}
	}
	if section == nil {
		d.failf("the text has no volume group")
	}
	if d.err != nil {
		return nil, d.err
	}
	if err := vg.decode(section); err != nil {
		return nil, fmt.Errorf("volume group %s: %w", section.key, err)
	}
	return vg, nil
}

// vgEntry is the key of the volume group among the top-level entries. No key of a
// text is empty.
const vgEntry = ""

func (vg *VG) decode(section *node) error {
	vg.Name = section.key
	d := &decoder{of: "volume group"}
	keys := section.children
	d.distinct(keys)
	vg.ID = d.id(keys)
	vg.Seqno = d.number(keys, "seqno")
	vg.Status = d.list(keys, "status")
	vg.Flags = d.optionalList(keys, "flags")
	vg.Tags = d.optionalList(keys, "tags")
	vg.SystemID = d.optionalText(keys, "system_id")
	vg.LockType = d.optionalText(keys, "lock_type")
	vg.ExtentSize = size.Sectors(d.number(keys, "extent_size"))
	vg.MaxLV = d.number(keys, "max_lv")
	vg.MaxPV = d.number(keys, "max_pv")
	d.check(checkStatus("the volume group", vg.Status, vgStatusWords))
	if vg.ExtentSize == 0 {
		d.failf("extent_size is 0")
	}
	for i := range keys {
		vg.keys = append(vg.keys, entry{keys[i].key, keys[i].source})
	}
	pvIndex := map[string]int{}
	for i, n := range d.sections(keys, "physical_volumes", true) {
		pvIndex[n.key] = i
		vg.PVs = append(vg.PVs, d.pv(&n))
	}
	lvs := d.sections(keys, "logical_volumes", false)
	vg.LVs = make([]*LV, 0, len(lvs))
	for i := range lvs {
		lv := d.lv(&lvs[i], pvIndex)
		vg.LVs = append(vg.LVs, lv)
		vg.enter(lv)
		for _, s := range lv.Segments {
			if s.Snapshot != nil && s.Snapshot.Merging {
				vg.merging = append(vg.merging, lv.Name, s.Snapshot.Origin, s.Snapshot.COWStore)
			}
		}
	}
	vg.edition, vg.changed, vg.unchecked = newEdition(), nil, nil
	return d.err
}

// decoder decodes the values of nodes and keeps the first error.
type decoder struct {
	of  string // the current object, for messages
	err error
}

func (d *decoder) check(err error) {
	if d.err == nil {
		d.err = err
	}
}

func (d *decoder) failf(format string, args ...any) {
	d.check(fmt.Errorf("%s: %s: %w", d.of, fmt.Sprintf(format, args...), ErrDamaged))
}

// distinct rejects duplicate keys: lvm2's readers differ in which of them they use.
func (d *decoder) distinct(nodes []node) {
	if len(nodes) < 32 {
		for i := range nodes {
			if find(nodes[:i], nodes[i].key) != nil {
				d.failf("the key %q occurs twice", nodes[i].key)
			}
		}
		return
	}
	seen := make(map[string]bool, len(nodes))
	for i := range nodes {
		if seen[nodes[i].key] {
			d.failf("the key %q occurs twice", nodes[i].key)
		}
		seen[nodes[i].key] = true
	}
}

func find(nodes []node, key string) *node {
	for i := range nodes {
		if nodes[i].key == key {
			return &nodes[i]
		}
	}
	return nil
}

func (d *decoder) scalar(nodes []node, key string) value {
	n := find(nodes, key)
	if n == nil || n.section || n.array {
		d.failf("%s is missing or not a single value", key)
		return value{}
	}
	return n.values[0]
}

func (d *decoder) text(nodes []node, key string) string {
	v := d.scalar(nodes, key)
	if v.kind != stringValue {
		d.failf("%s is not a string", key)
	}
	return v.text
}

func (d *decoder) optionalText(nodes []node, key string) string {
	if find(nodes, key) == nil {
		return ""
	}
	return d.text(nodes, key)
}

func (d *decoder) number(nodes []node, key string) uint64 {
	v := d.scalar(nodes, key)
	// Base 0, because lvm2 reads numbers with a leading 0 as octal.
	n, err := strconv.ParseInt(v.text, 0, 64)
	if v.kind != intValue || err != nil || n < 0 {
		d.failf("%s = %q is not a number from 0 to 2^63-1", key, v.text)
		return 0
	}
	return uint64(n)
}

func (d *decoder) extents(nodes []node, key string) Extents {
	n := d.number(nodes, key)
	if n > maxExtents {
		d.failf("%s = %d is greater than %d", key, n, uint64(maxExtents))
	}
	return Extents(n)
}

// maxExtents is the limit of LVM2, which counts extents in 32 bits. Sums and products
// of extents below the limit do not overflow.
const maxExtents = 1<<32 - 1

func (d *decoder) list(nodes []node, key string) []string {
	n := find(nodes, key)
	if n == nil || n.section {
		d.failf("%s is missing or not a list", key)
		return nil
	}
	words := make([]string, len(n.values))
	for i, v := range n.values {
		if v.kind != stringValue {
			d.failf("%s has a value that is not a string", key)
		}
		words[i] = v.text
	}
	return words
}

func (d *decoder) optionalList(nodes []node, key string) []string {
	if find(nodes, key) == nil {
		return nil
	}
	return d.list(nodes, key)
}

func (d *decoder) id(nodes []node) ID {
	id, err := ParseID(d.text(nodes, "id"))
	if err != nil {
		d.failf("%v", err)
	}
	return id
}

// sections returns the sections inside the section key.
func (d *decoder) sections(nodes []node, key string, required bool) []node {
	n := find(nodes, key)
	if n == nil && !required {
		return nil
	}
	if n == nil || !n.section {
		d.failf("%s is missing or not a section", key)
		return nil
	}
	d.distinct(n.children)
	for i := range n.children {
		if !n.children[i].section {
			d.failf("%s in %s is not a section", n.children[i].key, key)
			return nil
		}
	}
	return n.children
}

func (d *decoder) pv(n *node) *PV {
	d.of = "physical volume " + n.key
	keys := n.children
	d.distinct(keys)
	pv := &PV{
		ID:      d.id(keys),
		PEStart: size.Sectors(d.number(keys, "pe_start")),
		PECount: d.extents(keys, "pe_count"),
		Status:  d.list(keys, "status"),
		Flags:   d.optionalList(keys, "flags"),
		Tags:    d.optionalList(keys, "tags"),
		hint:    d.optionalText(keys, "device"),
		key:     n.key,
		text:    n.source,
	}
	if find(keys, "dev_size") != nil {
		pv.Size = size.Sectors(d.number(keys, "dev_size"))
	}
	d.check(checkStatus(d.of, pv.Status, pvStatusWords))
	return pv
}

func (d *decoder) lv(n *node, pvs map[string]int) *LV {
	d.of = "logical volume " + n.key
	d.distinct(n.children)
	lv := &LV{
		Name:         n.key,
		ID:           d.id(n.children),
		Status:       d.list(n.children, "status"),
		Flags:        d.optionalList(n.children, "flags"),
		Tags:         d.optionalList(n.children, "tags"),
		CreationHost: d.optionalText(n.children, "creation_host"),
		text:         n.source,
	}
	if find(n.children, "creation_time") != nil {
		lv.CreationTime = time.Unix(int64(d.number(n.children, "creation_time")), 0)
	}
	d.check(checkStatus(d.of, lv.Status, lvStatusWords))
	segments := 0
	for i := range n.children {
		if n.children[i].section {
			segments++
		}
	}
	if d.number(n.children, "segment_count") != uint64(segments) {
		d.failf("segment_count is not the number of segments, %d", segments)
	}
	lv.Segments = make([]Segment, 0, segments)
	var extra strings.Builder
	for i := range n.children {
		child := &n.children[i]
		switch child.key {
		case "id", "status", "flags", "tags", "creation_time", "creation_host", "segment_count":
		default:
			if child.section {
				// lvm2 reads every section of an LV as a segment, whatever its name.
				lv.Segments = append(lv.Segments, d.segment(child, pvs))
			} else {
				extra.WriteString(child.source)
				extra.WriteByte('\n')
			}
		}
	}
	lv.extra = extra.String()
	lv.sortSegments()
	return lv
}
