package pool

import (
	"sync"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// mapper is what the pool knows and holds of device-mapper.
type mapper struct {
	dm      *dm.Client // set when the pool is opened; may be used concurrently
	deepest int        // devices that the kernel can read through
	trash   sync.Mutex // held while devices of trash are made, or removed where nobody uses them
	windows timings    // how long cuts held their volumes
}
