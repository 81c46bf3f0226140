//go:build kernel

package dm

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestTable_plainTargets: the kernel returns the tables and statuses of the
// plain targets as this package prints them.
func TestTable_plainTargets(t *testing.T) {
	c := open(t)
	a, b := disk(t, 0), disk(t, 1)
	for table, want := range map[string]string{
		fmt.Sprintf("0 2048 linear %v 384", a):                 "",
		fmt.Sprintf("0 2048 striped 2 128 %v 0 %v 1024", a, b): fmt.Sprintf("2 %v %v 1 AA", a, b),
		"0 2048 zero":  "",
		"0 2048 error": "",
		fmt.Sprintf("0 2048 snapshot-origin %v", a):                      "",
		fmt.Sprintf("0 8 linear %v 0\n8 8 zero\n16 8 linear %v 0", a, b): "",
	} {
		mapped(t, c, "t-plain", table)
		checkTable(t, c, "t-plain", table)
		all, err := c.Status("t-plain")
		must(t, err)
		for i, s := range parse(t, table) {
			if got := all[i]; got != (TargetStatus{s.Start, s.Length, s.Target.Type(), RawStatus(want)}) {
				t.Errorf("status of %v is %+v", s, got)
			}
		}
		must(t, c.Remove("t-plain", 0))
	}
}

// snapshotted creates the four devices of an origin and its snapshot. The origin
// has 8 MiB, all bytes of value 1. The length of the snapshot's store is in MiB.
// It returns the paths of the origin and the snapshot.
func snapshotted(t *testing.T, c *Client, p Persistence, store size.Bytes) (origin, snapshot string) {
	t.Helper()
	real := mapped(t, c, "t-real", slice(disk(t, 0), 0, 8))
	cow := mapped(t, c, "t-cow", slice(disk(t, 1), 0, store))
	must(t, write(node(t, c, "t-real", real), 0, 8*size.MiB, 1))
	must(t, write(node(t, c, "t-cow", cow), 0, 4*size.KiB, 0))
	o, err := c.Create("t-origin", "")
	must(t, err)
	must(t, c.Load("t-origin", Table{{0, (8 * size.MiB).Sectors(), SnapshotOrigin{real}}}, false))
	s := mapped(t, c, "t-snap", fmt.Sprintf("0 16384 snapshot %v %v %s 8", real, cow, p))
	must(t, c.Resume("t-origin", UdevPrimarySource))
	return node(t, c, "t-origin", o.Device), node(t, c, "t-snap", s)
}

// TestSnapshot_persistent: a persistent snapshot keeps the old content, and its
// status counts the chunk.
func TestSnapshot_persistent(t *testing.T) {
	c := open(t)
	origin, snapshot := snapshotted(t, c, Persistent, 1)
	checkTable(t, c, "t-snap", fmt.Sprintf("0 16384 snapshot %v %v P 8", dev(t, c, "t-real"), dev(t, c, "t-cow")))
	checkStatus(t, c, "t-snap", "16/2048 16")
	must(t, write(origin, 0, 4*size.KiB, 2))
	checkStatus(t, c, "t-snap", "24/2048 16")
	if o, s := read(t, origin, 0), read(t, snapshot, 0); o != 2 || s != 1 {
		t.Errorf("origin reads %d and snapshot %d", o, s)
	}
}

// TestSnapshot_transient: a transient snapshot keeps the old content, and its
// status counts no metadata.
func TestSnapshot_transient(t *testing.T) {
	c := open(t)
	origin, snapshot := snapshotted(t, c, Transient, 1)
	checkTable(t, c, "t-snap", fmt.Sprintf("0 16384 snapshot %v %v N 8", dev(t, c, "t-real"), dev(t, c, "t-cow")))
	checkStatus(t, c, "t-snap", "0/2048 0")
	must(t, write(origin, 0, 4*size.KiB, 2))
	checkStatus(t, c, "t-snap", "8/2048 0")
	if s := read(t, snapshot, 0); s != 1 {
		t.Errorf("snapshot reads %d", s)
	}
}

// TestSnapshot_overflow: with PersistentOverflow, a write to the snapshot that
// fills the store fails, and the snapshot keeps its content.
func TestSnapshot_overflow(t *testing.T) {
	c := open(t)
	origin, snapshot := snapshotted(t, c, PersistentOverflow, 1)
	checkTable(t, c, "t-snap", fmt.Sprintf("0 16384 snapshot %v %v PO 8", dev(t, c, "t-real"), dev(t, c, "t-cow")))
	if err := write(snapshot, 0, 2*size.MiB, 3); !errors.Is(err, unix.EIO) {
		t.Errorf("write beyond the store: %v", err)
	}
	if s := status(t, c, "t-snap"); s != (SnapshotStatus{Overflow: true}) {
		t.Errorf("status is %q", s)
	}
	if s := read(t, snapshot, 4*size.MiB); s != 1 {
		t.Errorf("snapshot reads %d", s)
	}
	must(t, write(origin, 0, 4*size.KiB, 2))
}

// TestSnapshotMerge_copiesBack: a merge copies the snapshot's chunks to the
// origin, and its status then has only metadata.
func TestSnapshotMerge_copiesBack(t *testing.T) {
	c := open(t)
	origin, snapshot := snapshotted(t, c, Persistent, 1)
	must(t, write(snapshot, size.MiB, 64*size.KiB, 3))
	must(t, c.Remove("t-snap", 0))
	table := Table{{0, 16384, SnapshotMerge{Origin: dev(t, c, "t-real"), COW: dev(t, c, "t-cow"), Persistence: Persistent, Chunk: 8}}}
	must(t, c.Load("t-origin", table, false))
	must(t, c.Resume("t-origin", UdevPrimarySource))
	checkTable(t, c, "t-origin", table.String())
	eventually(t, func() bool {
		s := status(t, c, "t-origin").(SnapshotStatus)
		return s == SnapshotStatus{Used: 16, Total: 2048, Metadata: 16}
	})
	if a, b := read(t, origin, 0), read(t, origin, size.MiB); a != 1 || b != 3 {
		t.Errorf("merged origin reads %d and %d", a, b)
	}
}

// TestMirror_copiesFirstLeg: a mirror copies its first leg; with NoSync it is
// in sync immediately.
func TestMirror_copiesFirstLeg(t *testing.T) {
	c := open(t)
	a, b := disk(t, 0), disk(t, 1)
	must(t, write(diskPath(t, 0), 32*size.MiB, 8*size.MiB, 4))
	table := fmt.Sprintf("0 16384 mirror core 1 1024 2 %v 65536 %v 65536 1 handle_errors", a, b)
	mapped(t, c, "t-mirror", table)
	checkTable(t, c, "t-mirror", table)
	eventually(t, func() bool { return status(t, c, "t-mirror").(MirrorStatus).Synced() })
	checkStatus(t, c, "t-mirror", fmt.Sprintf("2 %v %v 16/16 1 AA 1 core", a, b))
	if v := read(t, diskPath(t, 1), 40*size.MiB-4*size.KiB); v != 4 {
		t.Errorf("the copy reads %d", v)
	}

	nosync := fmt.Sprintf("0 16384 mirror core 2 1024 nosync 2 %v 65536 %v 65536", a, b)
	reload(t, c, "t-mirror", nosync)
	checkTable(t, c, "t-mirror", nosync)
	checkStatus(t, c, "t-mirror", fmt.Sprintf("2 %v %v 16/16 1 AA 1 core", a, b))
}

// TestMirror_readError: a mirror whose source cannot be read reports a sync
// error and is not in sync.
func TestMirror_readError(t *testing.T) {
	c := open(t)
	bad := mapped(t, c, "t-bad", "0 16384 error")
	mapped(t, c, "t-mirror", fmt.Sprintf("0 16384 mirror core 1 1024 2 %v 0 %v 65536 1 handle_errors", bad, disk(t, 1)))
	eventually(t, func() bool {
		s := status(t, c, "t-mirror").(MirrorStatus)
		return s.Legs[0].Health == LegSyncError && !s.Synced()
	})
}
