//go:build kernel

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/driver"
)

// process is a running driver.
type process struct {
	*exec.Cmd
	output bytes.Buffer
}

func startNode(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0], append([]string{"node"}, args...)...)}
	p.Env = append(os.Environ(), asProgram+"=1")
	p.Stdout, p.Stderr = &p.output, &p.output
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Process.Kill()
		p.Wait()
	})
	return p
}

// end sends a signal, waits until the process ends, and returns Wait's error.
func (p *process) end(t *testing.T, s syscall.Signal) error {
	t.Helper()
	if err := p.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-time.After(30 * time.Second):
		t.Fatalf("%v did not end the process:\n%s", s, p.output.String())
		return nil
	}
}

// checkMetrics checks that the node's metrics have the lines.
func checkMetrics(t *testing.T, want ...string) {
	t.Helper()
	r, err := http.Get("http://127.0.0.1:9809/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range want {
		if !strings.Contains(string(text), line+"\n") {
			t.Errorf("the metrics lack %s:\n%s", line, text)
		}
	}
}

// A volume stays usable while the node is stopped, killed and started again, and a
// pool that cannot be opened does not disturb the other one.
func TestNode_restarts(t *testing.T) {
	disk := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")[0]
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatalf("DMSNAP_TEST_DISKS must name scratch disks: %v", err)
	}
	if _, err := f.Write(make([]byte, 4<<20)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	dir := t.TempDir()
	config, socket := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "csi.sock")
	text := fmt.Sprintf("pools:\n- name: fast\n  volumeGroup: vgnode\n  devices: [%s]\n  create: true\n"+
		// This pool cannot be opened; the node serves the other one.
		"- name: absent\n  devices: [/dev/does-not-exist]\n", disk)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"--config", config, "--endpoint", "unix://" + socket, "--node-name", "n1", "--kubelet-dir", dir, "--http", "127.0.0.1:9809"}
	connect := func() *grpc.ClientConn {
		t.Helper()
		conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	capability := &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "ext4"}},
	}

	p := startNode(t, args...)
	conn := connect()
	info, err := csi.NewIdentityClient(conn).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{})
	if err != nil || info.GetName() != driver.Name || info.GetVendorVersion() != buildVersion() {
		t.Fatalf("GetPluginInfo: %v, %v\n%s", info, err, p.output.String())
	}
	v, err := csi.NewControllerClient(conn).CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: "v", Parameters: map[string]string{"pool": "fast"}, VolumeCapabilities: []*csi.VolumeCapability{capability}, CapacityRange: &csi.CapacityRange{RequiredBytes: 64 << 20},
	})
	if err != nil {
		t.Fatal(err)
	}
	id, staging := v.GetVolume().GetVolumeId(), filepath.Join(dir, "staging")
	cut, err := csi.NewControllerClient(conn).CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: id})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := csi.NewNodeClient(conn).NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: id, StagingTargetPath: staging, VolumeCapability: capability,
	}); err != nil {
		t.Fatal(err)
	}
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(staging, "file"), []byte(content), 0o600); err != nil {
			t.Errorf("the volume is not usable: %v", err)
		}
	}

	checkMetrics(t, `csi_dmsnap_pool_open{pool="absent"} 0`, `csi_dmsnap_pool_open{pool="fast"} 1`, `csi_dmsnap_pool_volumes{pool="fast"} 1`,
		`csi_dmsnap_pool_volume_bytes{pool="fast"} 6.7108864e+07`, `csi_dmsnap_pool_layers{pool="fast"} 1`, `csi_dmsnap_pool_snapshots_lost{pool="fast"} 0`,
		`csi_dmsnap_pool_snapshots{pool="fast"} 1`, `csi_dmsnap_kernel_module_present{module="dm-mirror",part="device-mapper target mirror",pool="fast"} 1`,
		`csi_dmsnap_kernel_module_present{module="ext4",part="file system ext4",pool="fast"} 1`)

	if err := p.end(t, syscall.SIGTERM); err != nil {
		t.Errorf("SIGTERM: %v\n%s", err, p.output.String())
	}
	if _, err := os.Stat(socket); err == nil {
		t.Error("the socket is still there")
	}
	write("without a driver")

	p = startNode(t, args...) // it is killed below, and its socket stays
	if _, err := csi.NewNodeClient(connect()).NodeGetInfo(ctx, &csi.NodeGetInfoRequest{}); err != nil {
		t.Fatalf("after a restart: %v\n%s", err, p.output.String())
	}
	if err := p.end(t, syscall.SIGKILL); err == nil {
		t.Error("SIGKILL: no error")
	}
	write("after a kill")

	p = startNode(t, args...)
	conn = connect()
	if _, err := csi.NewNodeClient(conn).NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: staging}); err != nil {
		t.Errorf("unstage: %v\n%s", err, p.output.String())
	}
	if _, err := csi.NewControllerClient(conn).DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: cut.GetSnapshot().GetSnapshotId()}); err != nil {
		t.Errorf("delete the snapshot: %v\n%s", err, p.output.String())
	}
	if _, err := csi.NewControllerClient(conn).DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
		t.Errorf("delete: %v\n%s", err, p.output.String())
	}
	if err := p.end(t, syscall.SIGINT); err != nil {
		t.Errorf("SIGINT: %v\n%s", err, p.output.String())
	}
}
