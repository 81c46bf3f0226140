//go:build kernel

package driver

import (
	"fmt"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
)

// sized returns a request for a volume with a size in bytes.
func sized(name string, required, limit int64, c *csi.VolumeCapability) *csi.CreateVolumeRequest {
	q := request(name, 0, c)
	q.CapacityRange = &csi.CapacityRange{RequiredBytes: required, LimitBytes: limit}
	return q
}

// A claim of the same size as its source's claim can be created from the source
// and from its snapshot, however the size was rounded. This holds for restores,
// clones, read-only and transient volumes. The size of the snapshot passes csi-
// provisioner's comparison with the claim.
func TestCreateVolume_claimOfEqualSize(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		what     string
		required int64
		use      *csi.VolumeCapability
		readers  *csi.VolumeCapability
	}{
		{"1G", 1e9, block(writer), block(manyReaders)},
		{"100M of ext4", 1e8, mount(writer, filesystem.Ext4), mount(manyReaders, filesystem.Ext4)},
		{"100000001 bytes of ext4", 1e8 + 1, mount(writer, filesystem.Ext4), mount(manyReaders, filesystem.Ext4)},
		{"128Mi", 128 << 20, block(writer), block(manyReaders)},
		{"250Mi of xfs", 250 << 20, mount(writer, filesystem.XFS), mount(manyReaders, filesystem.XFS)},
		{"100M of btrfs", 1e8, mount(writer, filesystem.Btrfs), mount(manyReaders, filesystem.Btrfs)},
	} {
		t.Run(c.what, func(t *testing.T) {
			r := *r
			r.t = t
			var volumes, snapshots []string
			made := func(what string, q *csi.CreateVolumeRequest) *csi.Volume {
				t.Helper()
				v, err := r.CreateVolume(t.Context(), q)
				r.must(what, err)
				again, err := r.CreateVolume(t.Context(), q)
				r.must(what+" again", err)
				if again.GetVolume().GetVolumeId() != v.GetVolume().GetVolumeId() {
					t.Fatalf("%s: %v, again %v", what, v, again)
				}
				volumes = append(volumes, v.GetVolume().GetVolumeId())
				return v.GetVolume()
			}
			cut := func(name, volume string) string {
				t.Helper()
				s, err := r.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: c.what + name, SourceVolumeId: volume})
				r.must("snapshot", err)
				if got := s.GetSnapshot().GetSizeBytes(); got != c.required {
					t.Errorf("snapshot %s has a size of %d bytes: csi-provisioner compares it with the claim's, which is %d", name, got, c.required)
				}
				snapshots = append(snapshots, s.GetSnapshot().GetSnapshotId())
				return s.GetSnapshot().GetSnapshotId()
			}
			source := made("source", sized(c.what+"source", c.required, 0, c.use))
			if source.GetCapacityBytes() < c.required {
				t.Fatalf("the source has %d bytes", source.GetCapacityBytes())
			}
			// The stage formats the source: a read-only volume needs a file system.
			r.must("stage", r.stage(source.GetVolumeId(), "st", c.use))
			r.must("unstage", r.unstage(source.GetVolumeId(), "st"))
			snapshot := cut("snapshot", source.GetVolumeId())
			for _, x := range []struct {
				what   string
				use    *csi.VolumeCapability
				from   *csi.VolumeContentSource
				params map[string]string
			}{
				{"restore", c.use, fromSnapshot(snapshot), nil},
				{"clone", c.use, fromVolume(source.GetVolumeId()), nil},
				{"readers", c.readers, fromSnapshot(snapshot), nil},
				{"transient", c.use, fromSnapshot(snapshot), map[string]string{callmeta.ParameterTransient: "true"}},
			} {
				if c.use.GetBlock() != nil && x.what != "restore" && x.what != "clone" {
					continue // parts of the source were never wiped
				}
				q := sized(c.what+x.what, c.required, 0, x.use)
				q.VolumeContentSource, q.Parameters = x.from, x.params
				v := made(x.what, q)
				if v.GetCapacityBytes() != source.GetCapacityBytes() {
					t.Errorf("%s: %d bytes, the source has %d", x.what, v.GetCapacityBytes(), source.GetCapacityBytes())
				}
				if x.what == "restore" && c.required < 5e8 { // the pool has room for this; the same holds for a copy
					next := cut("of-the-restore", v.GetVolumeId())
					q := sized(c.what+"second", c.required, 0, c.use)
					q.VolumeContentSource = fromSnapshot(next)
					r.must("delete", r.remove(made("second", q).GetVolumeId()))
				}
				// A limit below the source's size is still respected.
				if q.CapacityRange.LimitBytes = source.GetCapacityBytes() - 1; q.CapacityRange.LimitBytes >= c.required {
					q.Name += "limited"
					_, err := r.CreateVolume(t.Context(), q)
					r.want(x.what+" with a limit", err, codes.OutOfRange)
				}
				r.must("delete", r.remove(v.GetVolumeId()))
			}
			// After an expansion of the source, a claim must ask for the new size.
			grown := source.GetCapacityBytes() + 5e6 + 1
			_, err := r.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
				VolumeId: source.GetVolumeId(), CapacityRange: &csi.CapacityRange{RequiredBytes: grown},
			})
			r.must("expand", err)
			c.required = grown
			later := cut("later", source.GetVolumeId())
			q := sized(c.what+"grown", grown, 0, c.use)
			q.VolumeContentSource = fromSnapshot(later)
			made("grown", q)
			q = sized(c.what+"smaller", source.GetCapacityBytes(), 0, c.use)
			q.VolumeContentSource = fromSnapshot(later)
			_, err = r.CreateVolume(t.Context(), q)
			r.want("smaller than the snapshot", err, codes.OutOfRange)

			for _, id := range volumes {
				r.must("delete", r.remove(id))
			}
			for _, id := range snapshots {
				_, err := r.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: id})
				r.must(fmt.Sprint("delete snapshot ", id), err)
			}
		})
	}
}
