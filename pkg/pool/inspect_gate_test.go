package pool

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestJoinedTable: who looks at a store sees the extents to which its gates lead.
func TestJoinedTable(t *testing.T) {
	disk, first, second := dm.Device{Major: 8}, dm.Device{Major: 253, Minor: 1}, dm.Device{Major: 253, Minor: 2}
	on := func(start, length uint64, d dm.Device, offset uint64) dm.Segment {
		return dm.Segment{Start: size.Sectors(start), Length: size.Sectors(length), Target: dm.Linear{Device: d, Offset: size.Sectors(offset)}}
	}
	closed := &kernelDevice{table: whole(size.Sectors(100), dm.ErrorTarget{})}
	for what, c := range map[string]struct {
		store, want dm.Table
		gates       map[dm.Device]*kernelDevice
	}{
		"no gate":    {dm.Table{on(0, 50, disk, 7)}, dm.Table{on(0, 50, disk, 7)}, nil},
		"closed":     {dm.Table{on(0, 50, disk, 7), on(50, 100, first, 0)}, dm.Table{on(0, 50, disk, 7)}, map[dm.Device]*kernelDevice{first: closed}},
		"not joined": {dm.Table{on(0, 50, disk, 7), on(50, 100, first, 0)}, dm.Table{on(0, 80, disk, 7), on(80, 10, disk, 200)}, map[dm.Device]*kernelDevice{first: {table: dm.Table{on(0, 30, disk, 57), on(30, 10, disk, 200), on(40, 60, second, 0)}}, second: closed}},
		"flat":       {dm.Table{on(0, 100, disk, 7)}, dm.Table{on(0, 100, disk, 7)}, map[dm.Device]*kernelDevice{first: closed}},
	} {
		if have := joinedTable(c.store, c.gates); !have.Equal(c.want) {
			t.Errorf("%s:\n%s\nwant\n%s", what, have, c.want)
		}
	}
}
