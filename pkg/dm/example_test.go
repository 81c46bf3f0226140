package dm_test

import (
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// The tables of the kernel's snapshot documentation: the volume's blocks, the
// snapshot, and the origin that takes the volume's place.
func ExampleTable() {
	disk := dm.Device{Major: 8, Minor: 19}
	real, cow := dm.Device{Major: 254, Minor: 11}, dm.Device{Major: 254, Minor: 12}
	for _, target := range []dm.Target{
		dm.Linear{Device: disk, Offset: 384},
		dm.Snapshot{Origin: real, COW: cow, Persistence: dm.Persistent, Chunk: 16},
		dm.SnapshotOrigin{Origin: real},
	} {
		fmt.Println(dm.Table{{Length: 2097152, Target: target}})
	}
	// Output:
	// 0 2097152 linear 8:19 384
	// 0 2097152 snapshot 254:11 254:12 P 16
	// 0 2097152 snapshot-origin 254:11
}

func ExampleParseTable() {
	table, err := dm.ParseTable("0 614400 linear 254:2 0\n614400 16384 zero")
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, s := range table {
		fmt.Printf("%d sectors from %d: %#v\n", s.Length, s.Start, s.Target)
	}
	fmt.Println(table.Length().Bytes())
	// Output:
	// 614400 sectors from 0: dm.Linear{Device:dm.Device{Major:0xfe, Minor:0x2}, Offset:0x0}
	// 16384 sectors from 614400: dm.Zero{}
	// 308MiB
}

func ExampleParseStatus() {
	status, err := dm.ParseStatus("snapshot", "2056/8192 16")
	if err != nil {
		fmt.Println(err)
		return
	}
	if s := status.(dm.SnapshotStatus); !s.Invalid {
		fmt.Printf("%v of %v used\n", s.Used.Bytes(), s.Total.Bytes())
	}
	// Output:
	// 1.0MiB of 4MiB used
}
