package driver

import (
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// operations are the calls that run now. Its methods may be called concurrently.
type operations struct {
	mu    sync.Mutex
	names map[string]string // the thing that is changed, to the method that changes it
}

// begin registers a call of method that changes the named things. It registers
// all names or none. The caller must call end when the call is over. Errors:
// ABORTED while another call changes any of the things.
func (o *operations) begin(method string, names []string) (end func(), err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, n := range names {
		if other, busy := o.names[n]; busy {
			return nil, aborted("%s of %s is running; retry", other, n)
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

// volumeName returns the thing that a call changes which creates, or reserves, a
// volume name.
func volumeName(name string) []string { return []string{"volume name " + name} }

// changes returns the names of the things that a request changes; none if the
// request only reads.
func changes(request any) []string {
	volume := func(id string) []string { return []string{"volume " + id} }
	switch r := request.(type) {
	case *csi.CreateVolumeRequest:
		return volumeName(r.GetName())
	case *csi.DeleteVolumeRequest:
		return volume(r.GetVolumeId())
	case *csi.ControllerExpandVolumeRequest:
		return volume(r.GetVolumeId())
	case *csi.CreateSnapshotRequest:
		// Also the volume: a snapshot taken in the middle of mkfs would be useless.
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
