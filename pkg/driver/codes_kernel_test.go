//go:build kernel

package driver

import (
	"os"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// Ids that name nothing on this node.
const (
	foreign   = "fake-vol-id"
	missing   = "v1:node-1:fast:pvc-none"
	elsewhere = "v1:node-2:fast:pvc-1"
	nopool    = "v1:node-1:slow:pvc-1"
)

// CreateVolume answers each wrong request with the code that CSI demands, and
// creates nothing.
func TestCodes_createVolume(t *testing.T) {
	r := newRig(t)
	fs, blk := mount(writer, "ext4"), block(writer)
	source := r.volume(request("source", 64, fs))
	snapshot := r.snapshot("snapshot", source)
	raw := r.volume(request("raw", 64, blk))
	with := func(q *csi.CreateVolumeRequest, change func(*csi.CreateVolumeRequest)) *csi.CreateVolumeRequest {
		change(q)
		return q
	}
	on := func(node string) func(*csi.CreateVolumeRequest) {
		return func(q *csi.CreateVolumeRequest) {
			q.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: []*csi.Topology{{Segments: map[string]string{handle.TopologyKey: node}}}}
		}
	}
	parameter := func(key, value string) func(*csi.CreateVolumeRequest) {
		return func(q *csi.CreateVolumeRequest) { q.Parameters = map[string]string{key: value} }
	}
	from := func(s *csi.VolumeContentSource) func(*csi.CreateVolumeRequest) {
		return func(q *csi.CreateVolumeRequest) { q.VolumeContentSource = s }
	}
	sized := func(required, limit int64) func(*csi.CreateVolumeRequest) {
		return func(q *csi.CreateVolumeRequest) {
			q.CapacityRange = &csi.CapacityRange{RequiredBytes: required, LimitBytes: limit}
		}
	}
	for _, c := range []struct {
		what string
		q    *csi.CreateVolumeRequest
		want codes.Code
	}{
		{"no name", request("", 64, fs), codes.InvalidArgument},
		{"name of 129 bytes", request(strings.Repeat("n", 129), 64, fs), codes.InvalidArgument},
		{"no capabilities", &csi.CreateVolumeRequest{Name: "v"}, codes.InvalidArgument},
		{"several writing nodes", request("v", 64, mount(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER, "")), codes.InvalidArgument},
		{"unsupported file system", request("v", 64, mount(writer, "vfat")), codes.InvalidArgument},
		{"unknown parameter", with(request("v", 64, fs), parameter("chunk", "4k")), codes.InvalidArgument},
		{"mutable parameter", with(request("v", 64, fs), func(q *csi.CreateVolumeRequest) { q.MutableParameters = map[string]string{"iops": "1"} }), codes.InvalidArgument},
		{"readers of nothing", request("v", 64, mount(manyReaders, "")), codes.InvalidArgument},
		{"reader of nothing", request("v", 64, mount(reader, "")), codes.InvalidArgument},
		{"pool of another node", with(request("v", 64, fs), parameter("pool", "slow")), codes.ResourceExhausted},
		{"other node required", with(request("v", 64, fs), on("node-2")), codes.ResourceExhausted},
		{"negative size", with(request("v", 64, fs), sized(-1, 0)), codes.InvalidArgument},
		{"limit below size", with(request("v", 64, fs), sized(2<<20, 1<<20)), codes.OutOfRange},
		{"limit below an extent", with(request("v", 64, blk), sized(1, 4096)), codes.OutOfRange},
		{"limit too small for xfs", with(request("v", 64, mount(writer, "xfs")), sized(64<<20, 128<<20)), codes.OutOfRange},
		{"larger than the pool", request("v", 1<<20, fs), codes.ResourceExhausted},
		{"source that was never made", with(request("v", 64, fs), from(fromSnapshot(foreign))), codes.NotFound},
		{"snapshot that is gone", with(request("v", 64, fs), from(fromSnapshot(missing))), codes.NotFound},
		{"snapshot on another node", with(request("v", 64, fs), from(fromSnapshot(elsewhere))), codes.NotFound},
		{"volume that is gone", with(request("v", 64, fs), from(fromVolume(missing))), codes.NotFound},
		{"empty source", with(request("v", 64, fs), from(&csi.VolumeContentSource{})), codes.InvalidArgument},
		{"smaller than the snapshot", with(request("v", 32, fs), from(fromSnapshot(snapshot))), codes.OutOfRange},
		{"smaller than the volume", with(request("v", 32, blk), from(fromVolume(raw))), codes.OutOfRange},
		{"other file system than the snapshot's", with(request("v", 320, mount(writer, "xfs")), from(fromSnapshot(snapshot))), codes.InvalidArgument},
		{"other file system than the volume's", with(request("v", 320, mount(writer, "xfs")), from(fromVolume(source))), codes.InvalidArgument},

		{"the same again", request("source", 64, fs), codes.OK},
		{"the same with all parameters", with(with(request("source", 64, fs), on("node-1")), func(q *csi.CreateVolumeRequest) {
			q.Parameters = map[string]string{"pool": "fast", "fstype": "ext4", "csi.storage.k8s.io/pvc/name": "p"}
		}), codes.OK},
		{"same name, larger", request("source", 128, fs), codes.AlreadyExists},
		{"same name, smaller", request("source", 32, fs), codes.AlreadyExists},
		{"same name, other mode", request("source", 64, blk), codes.AlreadyExists},
		{"same name, other file system", request("source", 64, mount(writer, "btrfs")), codes.AlreadyExists},
		{"same name, with a source", with(request("source", 64, fs), from(fromSnapshot(snapshot))), codes.AlreadyExists},
	} {
		_, err := r.CreateVolume(t.Context(), c.q)
		r.want(c.what, err, c.want)
	}
	list, err := r.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
	if err != nil || len(list.GetEntries()) != 2 {
		t.Errorf("refused requests left volumes: %v, %v", list, err)
	}
}

// The other calls of the Controller service answer each wrong request with the
// code that CSI demands.
func TestCodes_controller(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	fs := mount(writer, "ext4")
	volume := r.volume(request("one", 64, fs))
	other := r.volume(request("two", 64, fs))
	snapshot := r.snapshot("snapshot", volume)

	for id, want := range map[string]codes.Code{"": codes.InvalidArgument, foreign: codes.OK, missing: codes.OK, elsewhere: codes.NotFound, nopool: codes.NotFound} {
		r.want("delete volume "+id, r.remove(id), want)
		_, err := r.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: id})
		r.want("delete snapshot "+id, err, want)
	}
	grow := func(id string, required, limit int64) error {
		_, err := r.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
			VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: required, LimitBytes: limit},
		})
		return err
	}
	for id, want := range map[string]codes.Code{"": codes.InvalidArgument, foreign: codes.NotFound, missing: codes.NotFound, elsewhere: codes.NotFound} {
		r.want("expand "+id, grow(id, 128<<20, 0), want)
		_, err := r.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: id})
		r.want("get snapshot "+id, err, want)
		_, err = r.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: id})
		r.want("get volume "+id, err, want)
		_, err = r.ControllerGetVolumeHealth(ctx, &csi.ControllerGetVolumeHealthRequest{VolumeId: id})
		r.want("get volume health "+id, err, want)
		_, err = r.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: id, VolumeCapabilities: []*csi.VolumeCapability{fs}})
		r.want("validate "+id, err, want)
		_, err = r.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: id})
		r.want("snapshot of "+id, err, want)
		if id != "" {
			l, err := r.ListSnapshots(ctx, &csi.ListSnapshotsRequest{SnapshotId: id})
			if err != nil || len(l.GetEntries()) != 0 {
				t.Errorf("list snapshot %s: %v, %v", id, l, err)
			}
		}
	}
	r.want("expand beyond the pool", grow(volume, 1<<40, 0), codes.OutOfRange)
	r.want("expand to a negative size", grow(volume, -1, 0), codes.InvalidArgument)
	r.want("expand over the limit", grow(volume, 128<<20, 64<<20), codes.OutOfRange)
	r.want("expand to less", grow(volume, 32<<20, 0), codes.OK)
	_, err := r.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: volume})
	r.want("expand to nothing", err, codes.InvalidArgument)
	for what, c := range map[string]struct {
		as   *csi.VolumeCapability
		want codes.Code
	}{
		"block": {block(writer), codes.OK}, // a volume can be used in either mode
		"xfs":   {mount(writer, "xfs"), codes.InvalidArgument},
	} {
		_, err = r.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
			VolumeId: volume, CapacityRange: &csi.CapacityRange{RequiredBytes: 128 << 20}, VolumeCapability: c.as,
		})
		r.want("expand as "+what, err, c.want)
	}

	cut := func(name, source string, parameters map[string]string) error {
		_, err := r.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: source, Parameters: parameters})
		return err
	}
	r.want("snapshot without a name", cut("", volume, nil), codes.InvalidArgument)
	r.want("snapshot with a long name", cut(strings.Repeat("n", 129), volume, nil), codes.InvalidArgument)
	r.want("snapshot with an unknown parameter", cut("s", volume, map[string]string{"x": "y"}), codes.InvalidArgument)
	r.want("the same snapshot again", cut("snapshot", volume, nil), codes.OK)
	r.want("same snapshot name, other volume", cut("snapshot", other, nil), codes.AlreadyExists)
	_, err = r.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: volume, AccessibilityRequirements: &csi.TopologyRequirement{
		Requisite: []*csi.Topology{{Segments: map[string]string{handle.TopologyKey: "node-2"}}},
	}})
	r.want("snapshot for another node", err, codes.ResourceExhausted)

	_, err = r.ListVolumes(ctx, &csi.ListVolumesRequest{StartingToken: "invalid"})
	r.want("list volumes from a bad token", err, codes.Aborted)
	_, err = r.ListSnapshots(ctx, &csi.ListSnapshotsRequest{StartingToken: "invalid"})
	r.want("list snapshots from a bad token", err, codes.Aborted)
	_, err = r.ControllerListVolumeHealth(ctx, &csi.ControllerListVolumeHealthRequest{StartingToken: "invalid"})
	r.want("list health from a bad token", err, codes.Aborted)
	_, err = r.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: -1})
	r.want("list a negative number", err, codes.InvalidArgument)
	_, err = r.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: volume})
	r.want("validate nothing", err, codes.InvalidArgument)
	_, err = r.GetCapacity(ctx, &csi.GetCapacityRequest{Parameters: map[string]string{"x": "y"}})
	r.want("capacity with an unknown parameter", err, codes.InvalidArgument)
	_, err = r.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{VolumeId: volume})
	r.want("attach", err, codes.Unimplemented)
	_, err = r.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: snapshot})
	r.want("get the snapshot", err, codes.OK)
}

// The calls of the Node service answer each wrong request with the code that
// CSI demands, and are idempotent.
func TestCodes_node(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	fs, blk := mount(writer, "ext4"), block(writer)
	volume := r.volume(request("one", 64, fs))
	raw := r.volume(request("raw", 64, blk))
	if err := os.Symlink("/tmp", r.path("link")); err != nil {
		t.Fatal(err)
	}

	for id, want := range map[string]codes.Code{"": codes.InvalidArgument, foreign: codes.NotFound, missing: codes.NotFound, elsewhere: codes.NotFound} {
		r.want("stage "+id, r.stage(id, "st", fs), want)
		r.want("publish "+id, r.publish(id, "st", "tg", fs, false), want)
		_, err := r.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: r.path("st")})
		r.want("stats of "+id, err, want)
		_, err = r.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: id, VolumePath: r.path("st")})
		r.want("node expand "+id, err, want)
		_, err = r.NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{VolumeId: id})
		r.want("node health of "+id, err, want)
		if id == missing {
			want = codes.OK // the mounts of a deleted volume can be cleaned up
		}
		r.want("unpublish "+id, r.unpublish(id, "tg"), want)
		r.want("unstage "+id, r.unstage(id, "st"), want)
	}
	for _, c := range []struct {
		what, at string
	}{{"a link out of the kubelet directory", "link/x"}, {"a link", "link"}, {"a path out of it", "../x"}, {"the directory itself", ""}} {
		r.want("stage at "+c.what, r.stage(volume, c.at, fs), codes.InvalidArgument)
		r.want("unstage at "+c.what, r.unstage(volume, c.at), codes.InvalidArgument)
		r.want("publish at "+c.what, r.publish(volume, "st", c.at, fs, false), codes.InvalidArgument)
		r.want("unpublish at "+c.what, r.unpublish(volume, c.at), codes.InvalidArgument)
	}
	r.want("stage without a capability", r.stage(volume, "st", nil), codes.InvalidArgument)
	r.want("stage as xfs", r.stage(volume, "st", mount(writer, "xfs")), codes.FailedPrecondition)
	r.want("stage for readers on all nodes", r.stage(volume, "st", mount(manyReaders, "")), codes.FailedPrecondition)
	r.want("publish before stage", r.publish(volume, "st", "tg", fs, false), codes.FailedPrecondition)
	_, err := r.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{VolumeId: volume, TargetPath: r.path("tg"), VolumeCapability: fs})
	r.want("publish without a staging path", err, codes.FailedPrecondition)
	_, err = r.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: volume, VolumeCapability: fs})
	r.want("stage without a path", err, codes.InvalidArgument)

	r.must("stage", r.stage(volume, "st", fs))
	r.must("stage again", r.stage(volume, "st", fs))
	r.want("stage read-only", r.stage(volume, "st", mount(reader, "ext4")), codes.AlreadyExists)
	r.want("stage as block what is mounted", r.stage(volume, "st", blk), codes.FailedPrecondition)
	single := mount(singleWriter, "ext4")
	r.must("publish", r.publish(volume, "st", "tg", single, false))
	r.must("publish again", r.publish(volume, "st", "tg", single, false))
	r.want("publish again read-only", r.publish(volume, "st", "tg", single, true), codes.AlreadyExists)
	r.want("publish elsewhere", r.publish(volume, "st", "tg2", single, false), codes.FailedPrecondition)
	r.must("publish elsewhere with several writers", r.publish(volume, "st", "tg3", mount(multiWriter, "ext4"), true))
	r.must("stage raw", r.stage(raw, "rst", blk))
	r.want("publish another volume there", r.publish(raw, "rst", "tg", blk, false), codes.AlreadyExists)
	r.want("publish from another's staging path", r.publish(raw, "st", "rtg", blk, false), codes.FailedPrecondition)
	r.want("delete a staged volume", r.remove(volume), codes.FailedPrecondition)
	r.want("delete a staged block volume", r.remove(raw), codes.FailedPrecondition)
	r.want("unstage a published volume", r.unstage(volume, "st"), codes.FailedPrecondition)
	for _, path := range []string{"some/path", r.path("none"), r.kubelet} {
		_, err = r.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: volume, VolumePath: path})
		r.want("stats at "+path, err, codes.NotFound)
		_, err = r.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: volume, VolumePath: path})
		r.want("expand at "+path, err, codes.NotFound)
	}
	expand := func(id, at string, required int64) error {
		_, err := r.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: id, VolumePath: r.path(at), CapacityRange: &csi.CapacityRange{RequiredBytes: required}})
		return err
	}
	r.want("node expand beyond the pool", expand(volume, "tg", 1<<40), codes.OutOfRange)
	r.want("node expand", expand(volume, "tg", 96<<20), codes.OK)
	r.want("node expand at a read-only target", expand(volume, "tg3", 128<<20), codes.OK)
	r.want("node expand of block", expand(raw, "rst", 128<<20), codes.OK)

	for _, at := range []string{"tg", "tg", "tg3", "never"} {
		r.must("unpublish "+at, r.unpublish(volume, at))
	}
	for range 2 {
		r.must("unstage", r.unstage(volume, "st"))
		r.must("unstage raw", r.unstage(raw, "rst"))
		r.must("delete", r.remove(volume))
		r.must("delete raw", r.remove(raw))
	}
}
