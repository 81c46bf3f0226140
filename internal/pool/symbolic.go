package pool

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// symbolic is a table that can be made before the devices below it exist. It names the
// devices of the family by UUID, and disks by number.
type symbolic []piece

// piece is a segment of a symbolic table.
type piece struct {
	length size.Sectors
	target dm.Target // linear, snapshot-origin, snapshot, mirror or error
	on     []string  // UUIDs of the target's devices, in the target's order; for "" or a missing entry the target has the number
}

func (s symbolic) length() (n size.Sectors) {
	for _, p := range s {
		n += p.length
	}
	return n
}

// below returns the UUIDs of the devices in the table, each once.
func (s symbolic) below() []string {
	var all []string
	for _, p := range s {
		for _, uuid := range p.on {
			if uuid != "" && !slices.Contains(all, uuid) {
				all = append(all, uuid)
			}
		}
	}
	return all
}

// bind replaces UUIDs by device numbers. It reports whether all devices exist.
func (s symbolic) bind(number func(uuid string) (dm.Device, bool)) (dm.Table, bool) {
	t, complete := make(dm.Table, 0, len(s)), true
	for _, p := range s {
		at := func(i int, fixed dm.Device) dm.Device {
			if i >= len(p.on) || p.on[i] == "" {
				return fixed
			}
			d, there := number(p.on[i])
			complete = complete && there
			return d
		}
		target := p.target
		switch x := target.(type) {
		case dm.Linear:
			x.Device = at(0, x.Device)
			target = x
		case dm.SnapshotOrigin:
			x.Origin = at(0, x.Origin)
			target = x
		case dm.Snapshot:
			x.Origin, x.COW = at(0, x.Origin), at(1, x.COW)
			target = x
		case dm.Mirror:
			x.Legs = slices.Clone(x.Legs)
			for i := range x.Legs {
				x.Legs[i].Device = at(i, x.Legs[i].Device)
			}
			target = x
		}
		t = append(t, dm.Segment{Start: t.Length(), Length: p.length, Target: target})
	}
	return t, complete
}

// text returns the table's lines as dmsetup prints them. A device that does not exist yet
// appears by name: "0 2097152 snapshot-origin <vg-volume-real>".
func (s symbolic) text(number func(uuid string) (dm.Device, bool), name func(uuid string) string) []string {
	var missing []string
	t, _ := s.bind(func(uuid string) (dm.Device, bool) {
		if d, there := number(uuid); there {
			return d, true
		}
		i := slices.Index(missing, uuid)
		if i < 0 {
			i, missing = len(missing), append(missing, uuid)
		}
		return dm.Device{Major: placeholder, Minor: uint32(i)}, true
	})
	var lines []string
	for line := range strings.Lines(t.String()) {
		words := strings.Fields(line)
		for i, w := range words {
			for k, uuid := range missing {
				if w == fmt.Sprintf("%d:%d", placeholder, k) {
					words[i] = "<" + name(uuid) + ">"
				}
			}
		}
		lines = append(lines, strings.Join(words, " "))
	}
	return lines
}

// placeholder is a major number that no device has: the kernel's major numbers have 12 bits.
const placeholder = 1 << 12

// disks converts a table that names no device of the family.
func disks(t dm.Table) symbolic {
	s := make(symbolic, len(t))
	for i, x := range t {
		s[i] = piece{length: x.Length, target: x.Target}
	}
	return s
}

// linearOn returns the table of a device that maps another device from an offset on.
func linearOn(length size.Sectors, uuid string, offset size.Sectors) symbolic {
	return symbolic{{length, dm.Linear{Offset: offset}, []string{uuid}}}
}

// snapshotOn returns the table of a snapshot of origin with the store cow.
func snapshotOn(length size.Sectors, origin, cow device, kind dm.Persistence, chunk size.Sectors) symbolic {
	return symbolic{{length, dm.Snapshot{Persistence: kind, Chunk: chunk}, []string{origin.uuid, cow.uuid}}}
}

// originOn returns the table of a volume whose blocks have a snapshot.
func originOn(length size.Sectors, real device) symbolic {
	return symbolic{{length, dm.SnapshotOrigin{}, []string{real.uuid}}}
}

// mirrorFrom returns the table of a window, a mirror that copies from the fork to a piece of
// a disk.
func mirrorFrom(fork device, at catalog.Span, to dm.Linear) symbolic {
	return symbolic{{at.Length, dm.Mirror{
		Region: region(at.Length), Legs: []dm.Area{{Offset: at.Start}, dm.Area(to)}, HandleErrors: true,
	}, []string{fork.uuid}}}
}

// windowOn is a window's place on a fork, and the UUID of its device.
type windowOn struct {
	uuid string
	catalog.Span
}

// forkOn returns the table of the device with a fork's content. It maps the window, if there
// is one, to w, the other missing parts to the fork device, and the hydrated parts to the
// volume's own extents.
func forkOn(own dm.Table, missing catalog.Spans, fork string, w *windowOn) symbolic {
	parts := slices.Clone(missing)
	if w != nil {
		parts = append(missing.Without(w.Span), w.Span)
		slices.SortFunc(parts, func(a, b catalog.Span) int { return cmp.Compare(a.Start, b.Start) })
	}
	var t symbolic
	var at size.Sectors
	for _, part := range parts {
		t = append(t, disks(cutTable(own, at, part.Start))...)
		if w != nil && part == w.Span {
			t = append(t, linearOn(part.Length, w.uuid, 0)...)
		} else {
			t = append(t, linearOn(part.Length, fork, part.Start)...)
		}
		at = part.End()
	}
	return append(t, disks(cutTable(own, at, max(at, own.Length())))...)
}
