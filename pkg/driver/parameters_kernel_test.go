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

// CreateVolume, GetCapacity and ValidateVolumeCapabilities read the parameters of
// a class alike: what one of them refuses no other one takes, and there is room
// just where a volume can be made.
func TestParametersAlike(t *testing.T) {
	disks := scratch(t)
	for _, rig := range []struct {
		what  string
		pools []pool.Config
		open  codes.Code // of a class without a pool
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
				confirmed  bool // of source
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

			// Transient volumes have room where their sources can be.
			transient := map[string]string{"transient": "true"}
			got, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{Parameters: transient})
			if err != nil || got.GetMaximumVolumeSize().GetValue() < 64<<20 {
				t.Errorf("capacity of a transient class: %v, %v", got, err)
			}
			// What has a source goes to that's pool if the class names none.
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

// A pool with less room than the smallest file system has none for one.
func TestNoRoomForAFileSystem(t *testing.T) {
	r := newRig(t)
	room := func(c *csi.VolumeCapability) int64 {
		t.Helper()
		got, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{VolumeCapabilities: []*csi.VolumeCapability{c}})
		r.must("capacity", err)
		if got.GetMaximumVolumeSize().GetValue() > got.GetAvailableCapacity() {
			t.Errorf("%v: %v", c, got)
		}
		return got.GetMaximumVolumeSize().GetValue()
	}
	xfs, blk := mount(writer, filesystem.XFS), block(writer)
	if room(xfs) < 300<<20 {
		t.Errorf("an empty pool: %d for xfs, %d for blocks", room(xfs), room(blk))
	}
	r.volume(request("large", room(blk)>>20-200, blk))
	if room(blk) == 0 || room(xfs) != 0 || room(mount(writer, "")) == 0 {
		t.Errorf("with 200 MiB left: %d for xfs, %d for blocks, %d for the default", room(xfs), room(blk), room(mount(writer, "")))
	}
	_, err := r.CreateVolume(t.Context(), request("xfs", 64, xfs))
	r.want("xfs", err, codes.ResourceExhausted)
}

// A volume for writers and readers is one that is written: only a volume for
// nobody but readers needs a source.
func TestReadersAndWriters(t *testing.T) {
	r := newRig(t)
	fs, shared := mount(writer, filesystem.Ext4), mount(manyReaders, filesystem.Ext4)
	ask := func(name string, c ...*csi.VolumeCapability) *csi.CreateVolumeRequest {
		q := request(name, 64, c[0])
		q.VolumeCapabilities = c
		return q
	}
	for what, list := range map[string][]*csi.VolumeCapability{"written, read": {fs, shared}, "read, written": {shared, fs}} {
		volume := r.volume(ask("v", list...))
		if again := r.volume(ask("v", list...)); again != volume {
			t.Errorf("%s: %s, again %s", what, volume, again)
		}
		a, err := r.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{VolumeId: volume, VolumeCapabilities: list})
		if err != nil || a.GetConfirmed() == nil {
			t.Errorf("%s: %v, %v", what, a, err)
		}
		r.must("stage", r.stage(volume, "st", fs))
		r.write("st", what)
		r.must("unstage", r.unstage(volume, "st"))
		r.must("stage for readers", r.stage(volume, "st", shared))
		r.read("st", what)
		r.must("unstage", r.unstage(volume, "st"))

		// With a source it is written as well.
		q := ask("copy", list...)
		q.VolumeContentSource = fromVolume(volume)
		copied := r.volume(q)
		r.must("stage", r.stage(copied, "st", fs))
		r.read("st", what)
		r.write("st", "the copy's")
		r.must("unstage", r.unstage(copied, "st"))
		r.must("delete", r.remove(copied))
		r.must("delete", r.remove(volume))
	}
	for what, list := range map[string][]*csi.VolumeCapability{
		"readers": {shared}, "a reader": {mount(reader, filesystem.Ext4)}, "both": {shared, mount(reader, filesystem.Ext4)},
	} {
		_, err := r.CreateVolume(t.Context(), ask("nothing", list...))
		r.want(what, err, codes.InvalidArgument)
		c, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{VolumeCapabilities: list})
		if err != nil || c.GetAvailableCapacity() == 0 {
			t.Errorf("%s: %v, %v", what, c, err) // what has a source can be made
		}
	}
}
