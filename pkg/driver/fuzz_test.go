package driver

import (
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// FuzzCreateVolumeRequest: any request is refused with a code that a caller
// understands, or its name, sizes, parameters and capabilities are within the limits.
func FuzzCreateVolumeRequest(f *testing.F) {
	for _, r := range []*csi.CreateVolumeRequest{
		{Name: "pvc-1", CapacityRange: &csi.CapacityRange{RequiredBytes: 1 << 30, LimitBytes: 2 << 30}, Parameters: map[string]string{"pool": "fast", "fsType": "xfs", "transient": "true", "csi.storage.k8s.io/pvc/name": "c"},
			VolumeCapabilities: []*csi.VolumeCapability{{AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "ext4", MountFlags: []string{"noatime"}}}, AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}}}},
		{Name: strings.Repeat("x", 129), CapacityRange: &csi.CapacityRange{RequiredBytes: -1}},
		{VolumeCapabilities: []*csi.VolumeCapability{{AccessType: &csi.VolumeCapability_Block{}}}, MutableParameters: map[string]string{"a": "b"}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		var r csi.CreateVolumeRequest
		if proto.Unmarshal(wire, &r) != nil {
			return
		}
		_ = withoutSecrets{&r}.String()
		refused := func(err error) bool {
			if code := status.Code(toStatus(err)); err != nil && code != codes.InvalidArgument && code != codes.OutOfRange {
				t.Errorf("%v: %v", code, err)
			}
			return err != nil
		}
		if !refused(checkName(r.GetName())) && (r.GetName() == "" || len(r.GetName()) > handle.Max) {
			t.Errorf("the name %q", r.GetName())
		}
		if required, limit, err := capacityRange(r.GetCapacityRange()); !refused(err) && limit != 0 && limit < required {
			t.Errorf("%d to %d bytes", required, limit)
		}
		if p, err := parseParameters(r.GetParameters()); !refused(err) {
			for key := range r.GetParameters() {
				if key != "pool" && key != "transient" && key != "allowVolumeModeChange" && !strings.EqualFold(key, "fstype") && !strings.HasPrefix(key, "csi.storage.k8s.io/") {
					t.Errorf("the parameter %q", key)
				}
			}
			if p.pool != r.GetParameters()["pool"] {
				t.Errorf("the pool %q", p.pool)
			}
		}
		_, err := parseUsages(r.GetVolumeCapabilities())
		refused(err)
		_, _ = leastSize(r.GetVolumeCapabilities())
	})
}
