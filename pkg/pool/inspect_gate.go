package pool

import (
	"errors"
	"maps"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// lookAtGates asks for those of all devices that are gates of the group's stores.
func lookAtGates(client *dm.Client, vg lvm2.ID, all []dm.ListEntry) (gates []*kernelDevice, err error) {
	for _, e := range all {
		if _, is := splitGate(vg, e.UUID); !is {
			continue
		}
		d, err := lookAt(client, e, true)
		if errors.Is(err, dm.ErrNotFound) {
			continue // a growth has just joined it
		}
		if err != nil {
			return nil, err
		}
		gates = append(gates, d)
	}
	return gates, nil
}

// joined returns the group's devices as they were without gates: the table of a store
// is that of the extents to which it leads, directly or by gates that were opened.
func (l *look) joined() kernel {
	if len(l.gates) == 0 {
		return l.devices
	}
	byNumber := map[dm.Device]*kernelDevice{}
	for _, g := range l.gates {
		byNumber[g.Device] = g
	}
	out := maps.Clone(l.devices)
	for uuid, d := range out {
		if _, layer, _ := splitUUID(l.view.vg.ID, uuid); layer == layerCOW {
			c := *d
			c.table = joinedTable(d.table, byNumber)
			out[uuid] = &c
		}
	}
	return out
}

// joinedTable follows a store's table into its gates, and leaves the closed one out.
func joinedTable(t dm.Table, gates map[dm.Device]*kernelDevice) dm.Table {
	for range gates {
		end := len(t) - 1
		if end < 0 {
			break
		}
		to, _ := t[end].Target.(dm.Linear)
		g := gates[to.Device]
		if g == nil {
			break
		}
		start := t[end].Start
		t = slices.Clone(t[:end])
		if (&gate{table: g.table}).closed() {
			break
		}
		for _, s := range g.table {
			s.Start += start
			t = appendSegment(t, s)
		}
	}
	return t
}

// appendSegment appends a segment, and makes one of two that lead to one place.
func appendSegment(t dm.Table, s dm.Segment) dm.Table {
	if end := len(t) - 1; end >= 0 {
		a, is := t[end].Target.(dm.Linear)
		b, too := s.Target.(dm.Linear)
		if is && too && a.Device == b.Device && a.Offset+t[end].Length == b.Offset {
			t[end].Length += s.Length
			return t
		}
	}
	return append(t, s)
}
