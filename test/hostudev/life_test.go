//go:build kernel

package hostudev

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
)

var ext4 = &csi.VolumeCapability{
	AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "ext4"}},
}

const volumeBytes = 64 << 20

// call makes a call, which must succeed in time.
func call[Q, A any](n *node, method func(context.Context, Q, ...callOption) (A, error), q Q) A {
	n.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a, err := method(ctx, q)
	if ctx.Err() != nil {
		// The driver hangs: it prints its goroutines, which show where.
		_ = n.process.Process.Signal(unix.SIGQUIT)
		_, _ = n.process.Process.Wait()
	}
	if err != nil {
		n.Fatalf("%T: %v", q, err)
	}
	return a
}

func (n *node) create(name string, source *csi.VolumeContentSource, bytes int64) string {
	n.Helper()
	return call(n, n.controller.CreateVolume, &csi.CreateVolumeRequest{
		Name: name, VolumeCapabilities: []*csi.VolumeCapability{ext4}, VolumeContentSource: source,
		CapacityRange: &csi.CapacityRange{RequiredBytes: bytes}, Parameters: map[string]string{"pool": n.pool},
	}).GetVolume().GetVolumeId()
}

func (n *node) snapshot(name, volume string) string {
	n.Helper()
	return call(n, n.controller.CreateSnapshot, &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: volume}).GetSnapshot().GetSnapshotId()
}

func ofSnapshot(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
		Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id}}}
}

func (n *node) staging(name string) string { return filepath.Join(n.kubelet, "staging-"+name) }

// pod returns the path of a pod's volume. It is the same on the host and in the
// container.
func (n *node) pod(name string) string { return filepath.Join(n.kubelet, "pod-"+name) }

// publish makes a volume available to a pod.
func (n *node) publish(name, volume string) {
	n.Helper()
	if err := os.MkdirAll(n.staging(name), 0o755); err != nil {
		n.Fatal(err)
	}
	call(n, n.kubeletAPI.NodeStageVolume, &csi.NodeStageVolumeRequest{
		VolumeId: volume, StagingTargetPath: n.staging(name), VolumeCapability: ext4})
	call(n, n.kubeletAPI.NodePublishVolume, &csi.NodePublishVolumeRequest{
		VolumeId: volume, StagingTargetPath: n.staging(name), TargetPath: n.pod(name), VolumeCapability: ext4})
}

func (n *node) unpublish(name, volume string) {
	n.Helper()
	call(n, n.kubeletAPI.NodeUnpublishVolume, &csi.NodeUnpublishVolumeRequest{VolumeId: volume, TargetPath: n.pod(name)})
	call(n, n.kubeletAPI.NodeUnstageVolume, &csi.NodeUnstageVolumeRequest{VolumeId: volume, StagingTargetPath: n.staging(name)})
}

func (n *node) deleteVolume(id string) {
	n.Helper()
	call(n, n.controller.DeleteVolume, &csi.DeleteVolumeRequest{VolumeId: id})
}

func (n *node) deleteSnapshot(id string) {
	n.Helper()
	call(n, n.controller.DeleteSnapshot, &csi.DeleteSnapshotRequest{SnapshotId: id})
}

func (n *node) write(name, content string) {
	n.Helper()
	must(n.T, os.WriteFile(filepath.Join(n.pod(name), "file"), []byte(content), 0o600))
}

func (n *node) read(name, want string) {
	n.Helper()
	got, err := os.ReadFile(filepath.Join(n.pod(name), "file"))
	if err != nil || string(got) != want {
		n.Errorf("pod of %s reads %q, %v; want %q", name, got, err, want)
	}
}

// life takes a volume through three snapshots while it is used, a restore, an
// expansion, and the deletion of everything. It calls look when the most
// devices exist.
func (n *node) life(round int, look func(volume, copied string)) {
	n.Helper()
	vol, copied := fmt.Sprintf("vol-%d", round), fmt.Sprintf("copy-%d", round)
	v := n.create(vol, nil, volumeBytes)
	n.publish(vol, v)
	var snapshots []string
	for i := range 3 {
		n.write(vol, fmt.Sprint(i))
		snapshots = append(snapshots, n.snapshot(fmt.Sprintf("snap-%d-%d", round, i), v))
	}
	n.write(vol, "now")
	c := n.create(copied, ofSnapshot(snapshots[1]), volumeBytes)
	n.publish(copied, c)
	n.read(copied, "1")
	call(n, n.controller.ControllerExpandVolume, &csi.ControllerExpandVolumeRequest{
		VolumeId: v, CapacityRange: &csi.CapacityRange{RequiredBytes: 2 * volumeBytes}, VolumeCapability: ext4})
	call(n, n.kubeletAPI.NodeExpandVolume, &csi.NodeExpandVolumeRequest{
		VolumeId: v, VolumePath: n.pod(vol), StagingTargetPath: n.staging(vol), VolumeCapability: ext4})
	look(vol, copied)
	n.read(vol, "now")
	n.unpublish(copied, c)
	n.unpublish(vol, v)
	n.deleteVolume(c)
	for _, s := range snapshots {
		n.deleteSnapshot(s)
	}
	n.deleteVolume(v)
}
