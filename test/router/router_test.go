//go:build kernel

// Package router runs the controller role with two real drivers. It checks that
// each side understands what the other side sends.
package router

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/internal/router"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/driver"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// node starts a driver with a pool on one disk. It returns the node as
// Kubernetes would describe it.
func node(t *testing.T, name, disk string) router.Node {
	t.Helper()
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 4<<20)); err != nil {
		t.Fatal(err)
	}
	pools, err := pool.OpenSet(t.Context(), []pool.Config{{
		Name: "fast", VolumeGroup: "vg" + name, Devices: []string{disk}, Create: true, FirstStore: 8 * size.MiB,
	}}, pool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	kubelet := t.TempDir()
	d, err := driver.New(driver.Options{NodeName: name, KubeletDir: kubelet, Pools: pools, Fronts: []driver.Front{{Listener: l}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Serve(ctx, filepath.Join(kubelet, "csi.sock")) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := pools.Close(); err != nil {
			t.Error(err)
		}
	})
	return router.Node{Name: name, Instance: name, Addresses: []string{l.Addr().String()}}
}

func newRouter(t *testing.T, nodes ...router.Node) *router.Router {
	t.Helper()
	r, err := router.New(router.Options{Credentials: func(string) credentials.TransportCredentials { return insecure.NewCredentials() }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	r.SetNodes(nodes)
	return r
}

func request(name string, source *csi.VolumeContentSource, on ...string) *csi.CreateVolumeRequest {
	q := &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: 32 << 20}, VolumeContentSource: source,
		VolumeCapabilities: []*csi.VolumeCapability{{
			AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		}},
	}
	for _, n := range on {
		q.AccessibilityRequirements = &csi.TopologyRequirement{Preferred: []*csi.Topology{{Segments: map[string]string{handle.TopologyKey: n}}}}
	}
	return q
}

// TestRouter_twoDrivers: two replicas of the router place, find, list and delete
// volumes and snapshots on two real drivers.
func TestRouter_twoDrivers(t *testing.T) {
	disks := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")
	if len(disks) < 2 {
		t.Fatal("DMSNAP_TEST_DISKS must name two scratch disks; run this test by hack/testkernel")
	}
	nodes := []router.Node{node(t, "n1", disks[0]), node(t, "n2", disks[1])}
	replicas := []*router.Router{newRouter(t, nodes...), newRouter(t, nodes...)}
	r, ctx := replicas[0], t.Context()
	create := func(q *csi.CreateVolumeRequest) string {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			v, err := r.CreateVolume(ctx, q)
			if err == nil {
				return v.GetVolume().GetVolumeId()
			}
			if status.Code(err) != codes.Aborted || time.Now().After(end) { // the copy is still running
				t.Fatal(err)
			}
		}
	}
	bound := create(request("bound", nil, "n2"))
	if bound != "v1:n2:fast:bound" {
		t.Errorf("on the scheduler's node: %s", bound)
	}
	if roomy := create(request("roomy", nil)); roomy != "v1:n1:fast:roomy" {
		t.Errorf("on the node with most room: %s", roomy)
	}

	// Both replicas place the same names at the same time.
	var wg sync.WaitGroup
	names := []string{"a", "b", "c", "d", "e", "f"}
	for _, name := range names {
		for _, r := range replicas {
			wg.Go(func() {
				for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
					_, err := r.CreateVolume(ctx, request(name, nil))
					if err == nil {
						return
					}
					if status.Code(err) != codes.Aborted || time.Now().After(end) {
						t.Errorf("%s: %v", name, err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	list, err := r.ListVolumes(ctx, &csi.ListVolumesRequest{})
	if err != nil || len(list.GetEntries()) != len(names)+2 {
		t.Errorf("volumes: %v, %v", list, err)
	}

	s, err := r.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: bound})
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: "v1:n1:fast:roomy"})
	if status.Code(err) != codes.AlreadyExists {
		t.Errorf("the snapshot's name on another node: %v", err)
	}
	restored := create(request("restored", &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
		Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: s.GetSnapshot().GetSnapshotId()},
	}}, "n1"))
	if i, _ := handle.Parse(restored); i.Node != "n2" {
		t.Errorf("restored on %s", restored)
	}
	room, err := r.GetCapacity(ctx, &csi.GetCapacityRequest{AccessibleTopology: &csi.Topology{Segments: map[string]string{handle.TopologyKey: "n2"}}})
	if err != nil || room.GetAvailableCapacity() == 0 {
		t.Errorf("room on n2: %v, %v", room, err)
	}
	common, err := r.ControllerGetCapabilities(ctx, &csi.ControllerGetCapabilitiesRequest{})
	if err != nil || !slices.ContainsFunc(common.GetCapabilities(), func(c *csi.ControllerServiceCapability) bool {
		return c.GetRpc().GetType() == csi.ControllerServiceCapability_RPC_EXPAND_VOLUME
	}) {
		t.Errorf("%v, %v", common, err)
	}

	// Everything is deleted, page by page.
	if _, err := r.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: s.GetSnapshot().GetSnapshotId()}); err != nil {
		t.Error(err)
	}
	token, deleted := "", 0
	for {
		page, err := r.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: 2, StartingToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.GetEntries() {
			if _, err := r.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: e.GetVolume().GetVolumeId()}); err != nil {
				t.Error(err)
			}
			deleted++
		}
		if token = page.GetNextToken(); token == "" {
			break
		}
	}
	if deleted != len(names)+3 {
		t.Errorf("%d volumes were deleted", deleted)
	}
}
