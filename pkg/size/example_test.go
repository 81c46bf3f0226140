package size_test

import (
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Lengths convert between bytes and sectors of 512 bytes, and print in binary units.
func Example() {
	volume := 10*size.GiB + 1
	rounded := volume.RoundUp(4 * size.MiB)
	fmt.Println(rounded, "are", uint64(rounded.Sectors()), "sectors")
	fmt.Println(size.Sectors(2097152).Bytes())
	// Output:
	// 10.0GiB are 20979712 sectors
	// 1GiB
}

// RoundUp returns the next multiple of a unit.
func ExampleBytes_RoundUp() {
	fmt.Println(size.Bytes(5000).RoundUp(4 * size.KiB))
	// Output: 8KiB
}
