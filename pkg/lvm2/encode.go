package lvm2

import (
	"strconv"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

func writeNumber(b *strings.Builder, key string, n uint64) {
	b.WriteString(key)
	b.WriteString(" = ")
	b.WriteString(strconv.FormatUint(n, 10))
	b.WriteByte('\n')
}

func writeList(b *strings.Builder, key string, words []string) {
	b.WriteString(key)
	b.WriteString(" = [")
	for i, w := range words {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(quote(w))
	}
	b.WriteString("]\n")
}

// encode returns the logical volume's section, its keys in lvm2's order.
func (lv *LV) encode(pvs []*PV) string {
	var b strings.Builder
	b.Grow(512 + len(lv.extra) + 192*len(lv.Segments))
	b.WriteString(lv.Name + " {\n")
	b.WriteString("id = " + quote(lv.ID.String()) + "\n")
	writeList(&b, "status", lv.Status)
	writeList(&b, "flags", lv.Flags)
	if len(lv.Tags) > 0 {
		writeList(&b, "tags", lv.Tags)
	}
	if !lv.CreationTime.IsZero() {
		// lvm2 requires a host with a time, and rejects a host without a time.
		writeNumber(&b, "creation_time", uint64(lv.CreationTime.Unix()))
		b.WriteString("creation_host = " + quote(lv.CreationHost) + "\n")
	}
	b.WriteString(lv.extra)
	writeNumber(&b, "segment_count", uint64(len(lv.Segments)))
	b.WriteByte('\n')
	for i := range lv.Segments {
		lv.Segments[i].encode(&b, i+1, pvs)
	}
	b.WriteByte('}')
	return b.String()
}

func (pv *PV) encode() string {
	var b strings.Builder
	b.WriteString(pv.key + " {\n")
	b.WriteString("id = " + quote(pv.ID.String()) + "\n")
	b.WriteString("device = " + quote(pv.Device) + "\n\n")
	writeList(&b, "status", pv.Status)
	writeList(&b, "flags", pv.Flags)
	writeNumber(&b, "dev_size", uint64(pv.Size))
	writeNumber(&b, "pe_start", uint64(pv.PEStart))
	writeNumber(&b, "pe_count", uint64(pv.PECount))
	b.WriteByte('}')
	return b.String()
}

// Stamp records in a metadata text who wrote the text, and when. Nothing depends on
// it.
type Stamp struct {
	Description string
	Host        string
	Time        time.Time
}

// Text returns the metadata text of the volume group, in the format in which lvm2
// writes it to disk, but without the NUL at its end.
func (vg *VG) Text(s Stamp) []byte { return vg.appendText(nil, vg.Seqno, s) }

// TextSize returns the length of the metadata text that a Commit of vg would write.
// It may differ from the real length by the few bytes of the Stamp.
func (vg *VG) TextSize() size.Bytes {
	rest := *vg
	rest.LVs = nil
	n := size.Bytes(len(rest.appendText(nil, vg.Seqno+1, Stamp{Description: defaultDescription, Time: time.Now()}))) + 1
	if len(vg.LVs) > 0 {
		n += size.Bytes(len(lvsBegin)+len(lvsEnd)) + vg.lvText
	}
	return n
}

// lineSize returns the length of an LV's text among those of other LVs.
func lineSize(text string) size.Bytes { return size.Bytes(len(text)) + 2 }

func (vg *VG) appendText(b []byte, seqno uint64, s Stamp) []byte {
	for _, e := range vg.top {
		switch e.key {
		case vgEntry:
			b = vg.appendSection(b, seqno)
		case "description", "creation_host", "creation_time":
		default:
			b = append(append(b, e.source...), '\n')
		}
	}
	b = append(b, "\ndescription = "+quote(s.Description)+"\n\ncreation_host = "+quote(s.Host)+"\ncreation_time = "...)
	b = strconv.AppendInt(b, s.Time.Unix(), 10)
	return append(b, "\n\n"...)
}

// appendSection writes the volume group's keys in the order of the text from which
// it was read. As in lvm2, new flags and tags come before extent_size, and the first
// logical volumes come after the physical volumes.
func (vg *VG) appendSection(b []byte, seqno uint64) []byte {
	b = append(b, vg.Name+" {\n"...)
	written := map[string]bool{}
	write := func(key string) bool {
		if written[key] {
			return true
		}
		var line strings.Builder
		switch key {
		case "seqno":
			writeNumber(&line, key, seqno)
		case "status":
			writeList(&line, key, vg.Status)
		case "flags":
			writeList(&line, key, vg.Flags)
		case "tags":
			if len(vg.Tags) > 0 {
				writeList(&line, key, vg.Tags)
			}
		case "physical_volumes":
			b = vg.appendPVs(b)
		case "logical_volumes":
			b = vg.appendLVs(b)
		default:
			return false
		}
		b = append(b, line.String()...)
		written[key] = true
		return true
	}
	for _, e := range vg.keys {
		if e.key == "extent_size" {
			write("flags")
			write("tags")
		}
		if !write(e.key) {
			b = append(append(b, e.source...), '\n')
		}
		if e.key == "physical_volumes" {
			write("logical_volumes")
		}
	}
	return append(b, "\n}\n"...)
}

func (vg *VG) appendPVs(b []byte) []byte {
	b = append(b, "\nphysical_volumes {\n"...)
	for _, pv := range vg.PVs {
		b = append(append(append(b, '\n'), pv.text...), '\n')
	}
	return append(b, "}\n"...)
}

func (vg *VG) appendLVs(b []byte) []byte {
	if len(vg.LVs) == 0 {
		return b
	}
	b = append(b, lvsBegin...)
	for _, lv := range vg.LVs {
		b = append(append(append(b, '\n'), lv.text...), '\n')
	}
	return append(b, lvsEnd...)
}

// The text around the logical volumes.
const lvsBegin, lvsEnd = "\nlogical_volumes {\n", "}\n\n"

// newVG returns a volume group without logical volumes, as vgcreate would create it.
// extentSize is in sectors.
func newVG(name string, extentSize uint64, pvs []*PV, tags []string, systemID string) *VG {
	vg := &VG{
		Name: name, ID: NewID(), ExtentSize: size.Sectors(extentSize),
		Status: []string{statusResizeable, StatusRead, StatusWrite}, Tags: tags, SystemID: systemID,
		PVs: pvs, edition: newEdition(),
	}
	number := func(key string, n uint64) {
		vg.keys = append(vg.keys, entry{key, key + " = " + strconv.FormatUint(n, 10)})
	}
	text := func(key, s string) { vg.keys = append(vg.keys, entry{key, key + " = " + quote(s)}) }
	text("id", vg.ID.String())
	number("seqno", 0)
	text("format", "lvm2")
	text("status", "")
	text("flags", "")
	text("tags", "")
	if systemID != "" {
		text("system_id", systemID)
	}
	number("extent_size", extentSize)
	number("max_lv", 0)
	number("max_pv", 0)
	number("metadata_copies", 0)
	text("physical_volumes", "")
	vg.top = []entry{
		{key: vgEntry},
		{"contents", "contents = " + quote(contentsVolumeGroup)},
		{"version", "version = 1"},
	}
	return vg
}
