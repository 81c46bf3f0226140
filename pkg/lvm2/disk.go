package lvm2

import (
	"bytes"
	"fmt"
	"strconv"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// disk is a device that is a physical volume, with its label and metadata areas.
type disk struct {
	*device
	label *label
	areas []*metadataArea
}

// metadataArea is one metadata area of a physical volume.
type metadataArea struct {
	dev    *device
	where  region
	raw    []byte // the header as last read
	header mdaHeader
	text   []byte // the committed text with its NUL; nil if there is none
	about  summary
	err    error // why the header or text is unusable
	bad    bool  // the header is unusable
}

// inUse reports whether commits write to the area.
func (a *metadataArea) inUse() bool { return !a.bad && !a.header.committed.ignored() }

// summary has the fields in the first lines of a metadata text. It can be read even
// if a later part of the text is damaged.
type summary struct {
	name  string
	id    ID
	seqno uint64
}

// inspect reads the label and the metadata areas of a device. It returns nil if the
// device is not a physical volume. It stores damage inside an area in the area.
func inspect(d *device) (*disk, error) {
	if d.size < labelSectors*size.SectorBytes {
		return nil, nil
	}
	head, err := d.read(0, labelSectors*size.SectorBytes)
	if err != nil {
		return nil, err
	}
	l, err := findLabel(head)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", d.path, err)
	}
	if l == nil {
		return nil, nil
	}
	p := &disk{device: d, label: l}
	for _, where := range l.metadata {
		a := &metadataArea{dev: d, where: where}
		if err := a.load(); err != nil {
			a.err = fmt.Errorf("device %s: %w", d.path, err)
		}
		p.areas = append(p.areas, a)
	}
	return p, nil
}

// readHeader reads the header's sector.
func (a *metadataArea) readHeader() ([]byte, error) {
	b, err := a.dev.read(a.where.offset, mdaHeaderSize)
	if err != nil {
		return nil, err
	}
	return bytes.Clone(b), nil
}

// load reads the header and the committed text.
func (a *metadataArea) load() error {
	a.bad = true
	raw, err := a.readHeader()
	if err != nil {
		return err
	}
	a.raw = raw
	if a.header, err = decodeMDAHeader(raw, a.where); err != nil {
		return err
	}
	a.bad = false
	s := a.header.committed
	if s.ignored() || s.offset == 0 {
		return nil
	}
	text, err := a.readText(s)
	if err != nil {
		return err
	}
	a.about = summarize(text)
	if crc := checksum(text); crc != s.crc {
		return fmt.Errorf("metadata area at byte %d: the text of volume group %q has a wrong checksum: %w", a.where.offset, a.about.name, ErrDamaged)
	}
	a.text = text
	return nil
}

func (a *metadataArea) readText(s slot) ([]byte, error) {
	var text []byte
	for _, part := range a.header.split(s.offset, s.size) {
		b, err := a.dev.read(part.offset, part.size)
		if err != nil {
			return nil, err
		}
		if text == nil {
			text = b
		} else {
			text = append(text, b...)
		}
	}
	return text, nil
}

// summaryBytes is enough for the name, id and seqno in any text of lvm2.
const summaryBytes = 4096

// summarize reads a text up to the seqno. Fields that it does not reach are zero.
func summarize(text []byte) (found summary) {
	p := &parser{src: string(text[:min(len(text), summaryBytes)])}
	if p.next() != nil {
		return found
	}
	for p.kind != endToken {
		key, err := p.scalar()
		if err != nil {
			return found
		}
		if p.is('{') {
			found.name = key.text
			break
		}
		if !p.is('=') || p.assignment(&node{}) != nil {
			return found
		}
	}
	if found.name == "" || p.next() != nil {
		return found
	}
	for found.id == "" || found.seqno == 0 {
		n, err := p.node()
		if err != nil || len(n.values) != 1 {
			break
		}
		switch n.key {
		case "id":
			found.id, _ = ParseID(n.values[0].text)
		case "seqno":
			found.seqno, _ = strconv.ParseUint(n.values[0].text, 0, 32)
		}
	}
	return found
}
