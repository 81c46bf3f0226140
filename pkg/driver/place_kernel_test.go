//go:build kernel

package driver

import (
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// createCopy repeats a request until the volume is complete, as csi-provisioner
// does, and returns the volume's id.
func (r *rig) createCopy(q *csi.CreateVolumeRequest) string {
	r.t.Helper()
	for range 100 {
		v, err := r.CreateVolume(r.t.Context(), q)
		if status.Code(err) != codes.Aborted {
			r.must("create volume "+q.GetName(), err)
			return v.GetVolume().GetVolumeId()
		}
		if !strings.Contains(err.Error(), "copying") {
			r.t.Fatalf("create volume %s: %v, without progress", q.GetName(), err)
		}
	}
	r.t.Fatalf("volume %s is never complete", q.GetName())
	return ""
}

// A restore or clone whose class names another pool of the node is copied
// there. If the class names no pool, the volume is in the pool of its source.
func TestPlace_copyIntoAnotherPool(t *testing.T) {
	for _, fs := range []string{filesystem.Ext4, filesystem.XFS, filesystem.Btrfs} {
		t.Run(fs, func(t *testing.T) {
			disks := scratch(t)
			r := rigOf(t, pool.Config{Name: "one", VolumeGroup: "vgone", Devices: disks[:1]},
				pool.Config{Name: "two", VolumeGroup: "vgtwo", Devices: disks[1:2]})
			c := mount(writer, fs)
			least := int64(filesystem.MinimumSize(fs)) >> 20
			in := func(pool, name string, mib int64, source *csi.VolumeContentSource) *csi.CreateVolumeRequest {
				q := request(name, mib, mount(writer, ""))
				q.VolumeContentSource = source
				if pool != "" {
					q.Parameters = map[string]string{"pool": pool}
				}
				return q
			}
			first := in("one", "origin", least, nil)
			first.VolumeCapabilities = []*csi.VolumeCapability{c}
			origin := r.volume(first)
			r.must("stage", r.stage(origin, "st", c))
			r.must("publish", r.publish(origin, "st", "tg", c, false))
			r.write("tg", "as it was")
			snapshot := r.snapshot("snapshot", origin)
			r.write("tg", "as it is")

			restored := r.createCopy(in("two", "restored", least+64, fromSnapshot(snapshot)))
			clone := r.createCopy(in("two", "clone", least, fromVolume(origin)))
			if restored != "v1:node-1:two:restored" || clone != "v1:node-1:two:clone" {
				t.Errorf("ids %s and %s", restored, clone)
			}
			for name, content := range map[string]string{restored: "as it was", clone: "as it is"} {
				r.must("stage "+name, r.stage(name, "copy", c))
				r.must("publish "+name, r.publish(name, "copy", "copytg", c, false))
				r.read("copytg", content)
				r.write("copytg", "its own")
				r.must("unpublish "+name, r.unpublish(name, "copytg"))
				r.must("unstage "+name, r.unstage(name, "copy"))
			}
			r.read("tg", "as it is")
			if got := r.volume(in("", "near", least, fromSnapshot(snapshot))); got != "v1:node-1:one:near" {
				t.Errorf("without a pool the restored volume is %s", got)
			}
			list, err := r.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
			r.must("list", err)
			sources := map[string]string{}
			for _, e := range list.GetEntries() {
				from := e.GetVolume().GetContentSource()
				sources[e.GetVolume().GetVolumeId()] = from.GetSnapshot().GetSnapshotId() + from.GetVolume().GetVolumeId()
			}
			if len(sources) != 4 || sources[restored] != snapshot || sources[clone] != origin {
				t.Errorf("volumes and their sources: %v", sources)
			}
			reader := in("two", "reader", least, fromSnapshot(snapshot))
			reader.VolumeCapabilities = []*csi.VolumeCapability{mount(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, "")}
			_, err = r.CreateVolume(t.Context(), reader)
			r.want("a read-only restore in another pool", err, codes.InvalidArgument)

			r.must("unpublish", r.unpublish(origin, "tg"))
			r.must("unstage", r.unstage(origin, "st"))
		})
	}
}

// A node with several pools places a volume in the pool that the class or the
// source names.
func TestPlace_severalPools(t *testing.T) {
	disks := scratch(t)
	r := rigOf(t, pool.Config{Name: "one", VolumeGroup: "vgone", Devices: disks[:1]},
		pool.Config{Name: "two", VolumeGroup: "vgtwo", Devices: disks[1:2]})
	in := func(pool, name string, source *csi.VolumeContentSource) *csi.CreateVolumeRequest {
		q := request(name, 64, block(writer))
		q.VolumeContentSource = source
		if pool != "" {
			q.Parameters = map[string]string{"pool": pool}
		}
		return q
	}
	a := r.volume(in("one", "a", nil))
	b := r.volume(in("two", "b", nil))
	if a != "v1:node-1:one:a" || b != "v1:node-1:two:b" {
		t.Errorf("ids %s, %s", a, b)
	}
	for _, c := range []struct {
		q    *csi.CreateVolumeRequest
		want codes.Code
	}{
		{in("", "c", nil), codes.InvalidArgument},
		{in("three", "c", nil), codes.ResourceExhausted},
		{in("two", "a", nil), codes.AlreadyExists},
		{in("one", "c", fromVolume(a)), codes.OK},
		{in("two", "c", fromVolume(a)), codes.AlreadyExists},
	} {
		_, err := r.CreateVolume(t.Context(), c.q)
		r.want(c.q.String(), err, c.want)
	}
	list, err := r.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: 2})
	if err != nil || len(list.GetEntries()) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	list, err = r.ListVolumes(t.Context(), &csi.ListVolumesRequest{StartingToken: list.GetNextToken()})
	if err != nil || len(list.GetEntries()) != 1 || list.GetEntries()[0].GetVolume().GetVolumeId() != b {
		t.Errorf("second page: %v, %v", list, err)
	}
	var free [3]int64
	for i, parameters := range []map[string]string{{"transient": "true"}, {"pool": "one"}, {"pool": "two"}} {
		c, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{Parameters: parameters})
		r.must("capacity", err)
		free[i] = c.GetAvailableCapacity()
	}
	if free[0] != free[1]+free[2] || free[1] == 0 {
		t.Errorf("capacity of any, one, two: %v", free)
	}
}
