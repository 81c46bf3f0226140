package driver

import (
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// operations are the requests that run now, by what they change.
type operations struct {
	mu    sync.Mutex
	names map[string]string // what is changed: by which method
}

// begin starts an operation that changes the named things, all or none.
// ABORTED while another one changes any of them.
func (o *operations) begin(method string, names []string) (end func(), err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, n := range names {
		if other, busy := o.names[n]; busy {
			return nil, aborted("%s of %s is running; retry later", other, n)
		}
	}
	for _, n := range names {
		o.names[n] = method
	}
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, n := range names {
			delete(o.names, n)
		}
	}, nil
}

// changes lists what a request changes; nothing if it only reads.
func changes(request any) []string {
	volume := func(id string) []string { return []string{"volume " + id} }
	switch r := request.(type) {
	case *csi.CreateVolumeRequest:
		return []string{"volume name " + r.GetName()}
	case *csi.DeleteVolumeRequest:
		return volume(r.GetVolumeId())
	case *csi.ControllerExpandVolumeRequest:
		return volume(r.GetVolumeId())
	case *csi.CreateSnapshotRequest:
		// The volume too: a cut in the middle of a mkfs would be of no use.
		return append(volume(r.GetSourceVolumeId()), "snapshot name "+r.GetName())
	case *csi.DeleteSnapshotRequest:
		return []string{"snapshot " + r.GetSnapshotId()}
	case *csi.NodeStageVolumeRequest:
		return volume(r.GetVolumeId())
	case *csi.NodeUnstageVolumeRequest:
		return volume(r.GetVolumeId())
	case *csi.NodePublishVolumeRequest:
		return volume(r.GetVolumeId())
	case *csi.NodeUnpublishVolumeRequest:
		return volume(r.GetVolumeId())
	case *csi.NodeExpandVolumeRequest:
		return volume(r.GetVolumeId())
	}
	return nil
}
