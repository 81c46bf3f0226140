//go:build kernel

package driver

import (
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// CreateVolume, GetCapacity and ValidateVolumeCapabilities accept the same
// parameters, and there is room exactly where a volume can be created.
func TestParameters_sameInAllCalls(t *testing.T) {
	disks := scratch(t)
	for _, rig := range []struct {
		what  string
		pools []pool.Config
		open  codes.Code // code of CreateVolume for a class without a pool
	}{
		{"one pool", []pool.Config{{Name: "one", VolumeGroup: "vgone", Devices: disks[:1]}}, codes.OK},
		{"two pools", []pool.Config{{Name: "one", VolumeGroup: "vgone", Devices: disks[:1]}, {Name: "two", VolumeGroup: "vgtwo", Devices: disks[1:2]}}, codes.InvalidArgument},
	} {
		t.Run(rig.what, func(t *testing.T) {
			r := rigOf(t, rig.pools...)
			fs := mount(writer, filesystem.Ext4)
			q := request("source", 64, fs)
			q.Parameters = map[string]string{"pool": "one"}
			source := r.volume(q)
			for _, c := range []struct {
				what       string
				parameters map[string]string
				create     codes.Code
				capacity   codes.Code
				confirmed  bool // ValidateVolumeCapabilities confirms source
			}{
				{"nothing", nil, rig.open, codes.OK, true},
				{"its pool", map[string]string{"pool": "one"}, codes.OK, codes.OK, true},
				{"a file system", map[string]string{"pool": "one", "csi.storage.k8s.io/fstype": "ext4"}, codes.OK, codes.OK, true},
				{"a file system, as people write it", map[string]string{"pool": "one", "fsType": "ext4"}, codes.OK, codes.OK, true},
				{"another pool", map[string]string{"pool": "three"}, codes.ResourceExhausted, codes.OK, false},
				{"changes of the mode", map[string]string{"pool": "one", "allowVolumeModeChange": "true"}, codes.OK, codes.OK, true},
				{"not transient", map[string]string{"pool": "one", "transient": "false"}, codes.OK, codes.OK, true},
				{"unknown", map[string]string{"pool": "one", "chunk": "4Ki"}, codes.InvalidArgument, codes.InvalidArgument, false},
				{"neither true nor false", map[string]string{"pool": "one", "transient": "yes"}, codes.InvalidArgument, codes.InvalidArgument, false},
				{"a change of the mode by word", map[string]string{"pool": "one", "allowVolumeModeChange": "1"}, codes.InvalidArgument, codes.InvalidArgument, false},
			} {
				q := request("new", 8, fs)
				q.Parameters = c.parameters
				v, err := r.CreateVolume(t.Context(), q)
				r.want("create with "+c.what, err, c.create)
				if err == nil {
					r.must("delete", r.remove(v.GetVolume().GetVolumeId()))
				}
				got, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{Parameters: c.parameters})
				r.want("capacity with "+c.what, err, c.capacity)
				if some := got.GetAvailableCapacity() > 0 && got.GetMaximumVolumeSize().GetValue() > 0; some != (c.create == codes.OK) {
					t.Errorf("capacity with %s: %v, create says %v", c.what, got, c.create)
				}
				a, err := r.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{
					VolumeId: source, Parameters: c.parameters, VolumeCapabilities: []*csi.VolumeCapability{fs},
				})
				if err != nil || (a.GetConfirmed() != nil) != c.confirmed {
					t.Errorf("validate with %s: %v, %v", c.what, a, err)
				}
			}

			a, err := r.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{
				VolumeId: source, MutableParameters: map[string]string{"iops": "1"}, VolumeCapabilities: []*csi.VolumeCapability{fs},
			})
			if err != nil || a.GetConfirmed() != nil {
				t.Errorf("validate with mutable parameters: %v, %v", a, err)
			}

			// Transient volumes have room in each pool that their source may be in.
			transient := map[string]string{"transient": "true"}
			got, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{Parameters: transient})
			if err != nil || got.GetMaximumVolumeSize().GetValue() < 64<<20 {
				t.Errorf("capacity of a transient class: %v, %v", got, err)
			}
			// A volume with a source goes to the pool of the source if the class names none.
			for name, parameters := range map[string]map[string]string{"clone": nil, "scratch": transient} {
				q := request(name, 64, fs)
				q.VolumeContentSource, q.Parameters = fromVolume(source), parameters
				v, err := r.CreateVolume(t.Context(), q)
				r.must(name, err)
				if i, _ := handle.Parse(v.GetVolume().GetVolumeId()); i.Pool != "one" {
					t.Errorf("%s is %v", name, i)
				}
				a, err := r.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{
					VolumeId: v.GetVolume().GetVolumeId(), Parameters: transient, VolumeCapabilities: []*csi.VolumeCapability{fs},
				})
				if err != nil || (a.GetConfirmed() != nil) != (name == "scratch") {
					t.Errorf("validate %s as transient: %v, %v", name, a, err)
				}
				r.must("delete", r.remove(v.GetVolume().GetVolumeId()))
			}
		})
	}
}
