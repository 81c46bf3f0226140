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

// allUUIDs returns the UUIDs of all devices of the machine.
func (m *mapper) allUUIDs() (map[string]bool, error) {
	all, err := m.dm.List()
	if err != nil {
		return nil, err
	}
	has := make(map[string]bool, len(all))
	for _, e := range all {
		has[e.UUID] = true
	}
	return has, nil
}
