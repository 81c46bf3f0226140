package main

import (
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// sample returns a pool with two volumes; the first has two snapshots and an inner
// layer.
func sample() []*pool.Inspection {
	used, at := 132*size.KiB, time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	layer := func(name, lv, state string, position int) pool.LayerState {
		return pool.LayerState{
			Pool: "fast", Name: name, LV: lv, Volume: "base", State: state, Position: position, Order: uint64(4 - position),
			Created: at, Size: size.GiB, Store: 8 * size.MiB, Chunk: 16 * size.KiB,
		}
	}
	live, inner, frozen := layer("snapshot-3", "snap-3", "live", 1), layer("", "snap2", "inner", 2), layer("snap1", "snap1", "frozen", 3)
	live.Used, live.Active, inner.Readers = &used, true, []string{"copy"}
	return []*pool.Inspection{{
		PoolState: pool.PoolState{
			Pool: "fast", VolumeGroup: "vg", ID: "abcdef-0123", Total: 20 * size.GiB, Free: 18 * size.GiB, Room: 17 * size.GiB, Blocks: size.GiB,
			Stores: 24 * size.MiB, Foreign: 1000 * size.MiB, Unwiped: 2 * size.GiB, Clean: pool.CleanBackground, Metadata: pool.Metadata{Size: 800, Used: 140, Reserved: 100}, Disks: []pool.Disk{{Device: "/dev/sda"}, {ID: "abc", Missing: true}},
			LeftOut: []pool.LeftOut{{Device: "/dev/disk/by-id/nvme-a", Why: "device has partitions: nvme0n1p1"}},
		},
		Volumes: []pool.VolumeState{
			{
				Pool: "fast", Name: "base", LV: "base", Size: size.GiB, Mode: pool.Filesystem, FSType: "ext4", State: "ready",
				Active: true, OpenCount: 1, Mounts: []string{"/data"}, Layers: []pool.LayerState{live, inner, frozen},
				Devices: []pool.DeviceState{
					{Name: "vg-base", Number: "254:1", OpenCount: 1, Table: []string{"0 2097152 snapshot-origin 254:2"}, Uses: []string{"254:2"}},
					{Name: "vg-base-real", Number: "254:2", OpenCount: 2, Table: []string{"0 1048576 linear 8:0 2048", "1048576 1048576 linear 8:0 4194304"}, Uses: []string{"8:0"}},
					{Name: "vg-snap--3", Number: "254:4", Suspended: true, Table: []string{"0 2097152 snapshot 254:2 254:3 P 32"}, Status: "264/16384 16", Uses: []string{"254:3", "254:2"}},
					{Name: "vg-snap--3-cow", Number: "254:3", OpenCount: 1, ReadOnly: true, Table: []string{"0 16384 linear 8:0 8388608"}, Uses: []string{"8:0"}},
				},
			},
			{
				Pool: "fast", Name: "pvc-1", LV: "copy", Size: 2 * size.GiB, Mode: pool.Block, ReadOnly: true, State: "hydrating", Hydration: &pool.Hydration{Done: size.GiB, Total: 2 * size.GiB},
				Source: &pool.Source{Kind: pool.FromSnapshot, LV: "snap1"},
			},
		},
	}}
}

// Tables have their columns aligned, and no empty cells.
func TestTables_layout(t *testing.T) {
	volumes := volumesOf(sample())
	for _, c := range []struct {
		what  string
		print func(*strings.Builder) error
		want  string
	}{
		{"pools", func(b *strings.Builder) error { return printPools(b, sample()) }, `
POOL  GROUP  SIZE   FREE   ROOM   VOLUMES  SNAPSHOTS  TO-WIPE  UNCLEAN           FOREIGN  METADATA  DISKS                 GROUP-ID
fast  vg     20GiB  18GiB  17GiB  1GiB     24MiB      0B       2GiB(background)  1000MiB  20%       /dev/sda,missing:abc  abcdef-0123

POOL  LEFT-OUT                WHY
fast  /dev/disk/by-id/nvme-a  device has partitions: nvme0n1p1
`},
		{"volumes", func(b *strings.Builder) error { return printVolumes(b, volumes) }, `
POOL  VOLUME  LV    SIZE  TYPE      STATE          SNAPSHOTS  ACTIVE  OPEN  SOURCE
fast  base    base  1GiB  ext4      ready          2          yes     1     -
fast  pvc-1   copy  2GiB  block,ro  hydrating 50%  0          no      0     snapshot/snap1
`},
		{"snapshots", func(b *strings.Builder) error { return printSnapshots(b, volumes[0].Layers) }, `
POOL  VOLUME  POSITION  SNAPSHOT    LV      STATE   SIZE  STORE  USED        CREATED
fast  base    1/3       snapshot-3  snap-3  live    1GiB  8MiB   132KiB(1%)  2026-11-22T10:00:00Z
fast  base    2/3       -           snap2   inner   1GiB  8MiB   ?           2026-11-22T10:00:00Z
fast  base    3/3       snap1       snap1   frozen  1GiB  8MiB   ?           2026-11-22T10:00:00Z
`},
		{"tree", func(b *strings.Builder) error { return printTree(b, volumes[0]) }, `
fast/base: 1GiB, ext4, ready, active, open 1, mounted at /data
├─ snap-3 (snapshot-3)  live    2026-11-22T10:00:00Z  1GiB  store 8MiB  used 132KiB(1%)
├─ snap2                inner   2026-11-22T10:00:00Z  1GiB  store 8MiB  used ?  read through by copy
└─ snap1                frozen  2026-11-22T10:00:00Z  1GiB  store 8MiB  used ?

devices:
vg-base 254:1  open 1
│  0 2097152 snapshot-origin 254:2
└─ vg-base-real 254:2  open 2
      0 1048576 linear 8:0 2048
      1048576 1048576 linear 8:0 4194304
vg-snap--3 254:4  open 0, SUSPENDED, status 264/16384 16
│  0 2097152 snapshot 254:2 254:3 P 32
├─ vg-snap--3-cow 254:3  open 1, read-only
│     0 16384 linear 8:0 8388608
└─ vg-base-real (see above)
`},
		{"tree without devices", func(b *strings.Builder) error { return printTree(b, volumes[1]) }, `
fast/copy (pvc-1): 2GiB, block,ro, hydrating 50%, not active, from snapshot snap1
`},
		{"check", func(b *strings.Builder) error {
			printCheck(b, []*checked{
				{Verification: &pool.Verification{Pool: "fast", VolumeGroup: "vg", Unread: []pool.Unread{{Where: "vg/a", Why: "not active"}, {Where: "vg/b", Why: "not active"}}}},
				{NoDriver: "nobody answers", Verification: &pool.Verification{Pool: "slow", VolumeGroup: "slow", Findings: []pool.Finding{
					{Reason: "WrongTable", Where: "slow-v", What: "its table is\nx", Do: "mend it"},
					{Reason: "SnapshotLost", Where: "slow/s", What: "it is lost", Do: "delete it"},
				}}},
			})
			return nil
		}, `
pool fast (volume group vg): all is well; stores not read: 2 (not active)
pool slow (volume group slow): findings: 2

slow-v  WrongTable
  its table is
  x
  what to do: mend it

slow/s  SnapshotLost
  it is lost
  what to do: delete it

not checked, because only the running driver knows: copies and wiping that fail, stores that cannot grow,
writers that wait, file systems (nobody answers)
`},
	} {
		var b strings.Builder
		if err := c.print(&b); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		if want := c.want[1:]; b.String() != want {
			t.Errorf("%s:\n%s\nwant:\n%s", c.what, b.String(), want)
		}
	}
}
