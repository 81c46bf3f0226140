package handle_test

import (
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// The id of a volume names the node, the pool and the logical volume.
func ExampleParse() {
	id := handle.ID{Node: handle.ShortNode("worker-17.example.org"), Pool: "fast", LV: "pvc-0a1b"}
	fmt.Println(id)

	again, ok := handle.Parse(id.String())
	fmt.Println(again.Node, again.Pool, again.LV, ok)
	_, ok = handle.Parse("an id of another driver")
	fmt.Println(ok)
	// Output:
	// v1:worker-17.example.org:fast:pvc-0a1b
	// worker-17.example.org fast pvc-0a1b true
	// false
}
