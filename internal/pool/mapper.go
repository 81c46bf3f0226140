package pool

import (
	"fmt"
	"strings"
	"sync"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// mapper is the pool's access to device-mapper.
type mapper struct {
	dm      *dm.Client // set when the pool is opened; may be used concurrently
	deepest int        // number of stacked devices that the kernel can read through
	trash   sync.Mutex // held while devices of trash are made or removed
	windows timings    // how long cuts suspended their volumes
	questions
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

// lvDevices returns the kernel's names ("dm-3") of the devices of logical volumes; none if
// the devices cannot be listed.
func (m *mapper) lvDevices() map[string]bool {
	all, _ := m.dm.List()
	lvs := map[string]bool{}
	for _, e := range all {
		if strings.HasPrefix(e.UUID, lvm2.DMUUID("", "", "")) {
			lvs[fmt.Sprintf("dm-%d", e.Device.Minor)] = true
		}
	}
	return lvs
}
