package main

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
)

// disks is a controller with fixed lists.
type disks struct {
	csi.UnimplementedControllerServer
	volumes, snapshots []string
	silent             []string
	theirs             []string // volumes that LVM2 made; no list has them
}

func (d *disks) ControllerGetVolume(_ context.Context, r *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	if slices.Contains(d.theirs, r.GetVolumeId()) {
		return &csi.ControllerGetVolumeResponse{Volume: &csi.Volume{VolumeId: r.GetVolumeId()}}, nil
	}
	if strings.HasPrefix(r.GetVolumeId(), "v1:n3:") {
		return nil, status.Error(codes.Unavailable, "the node went down after the lists")
	}
	return nil, status.Error(codes.NotFound, "no such volume")
}

func (d *disks) trailer(ctx context.Context) {
	for _, n := range d.silent {
		grpc.SetTrailer(ctx, metadata.Pairs(callmeta.PartialKey, n))
	}
}

func (d *disks) ListVolumes(ctx context.Context, _ *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	d.trailer(ctx)
	a := &csi.ListVolumesResponse{}
	for _, id := range d.volumes {
		a.Entries = append(a.Entries, &csi.ListVolumesResponse_Entry{Volume: &csi.Volume{VolumeId: id}})
	}
	return a, nil
}

func (d *disks) ListSnapshots(ctx context.Context, r *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	if r.GetSnapshotId() != "" {
		if strings.HasPrefix(r.GetSnapshotId(), "v1:n4:gone:") {
			return nil, status.Error(codes.Unavailable, "the pool was here before, and is missing")
		}
		return &csi.ListSnapshotsResponse{}, nil
	}
	d.trailer(ctx)
	a := &csi.ListSnapshotsResponse{}
	for _, id := range d.snapshots {
		a.Entries = append(a.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: &csi.Snapshot{SnapshotId: id}})
	}
	if len(d.volumes) > 0 {
		d.volumes = d.volumes[:len(d.volumes)-1] // the last volume was just being created: the second look does not find it
	}
	return a, nil
}

// orphans lists what only the disks or only Kubernetes know, leaves out what changes
// between its two looks, and says which nodes did not answer.
func TestOrphans_comparesDisksWithKubernetes(t *testing.T) {
	d := &disks{
		volumes:   []string{"v1:n1:fast:a", "v1:n1:fast:lost", "v1:n1:fast:new"},
		snapshots: []string{"v1:n1:fast:s", "v1:n1:fast:s-lost"},
		silent:    []string{"n2"},
		theirs:    []string{"v1:n1:fast:theirs"},
	}
	socket := filepath.Join(t.TempDir(), "csi.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	csi.RegisterControllerServer(server, d)
	go server.Serve(l)
	defer server.Stop()
	notCut := snapshotContent("not-cut", "")
	clients := fakeClients([]runtime.Object{
		clusterNode("n1", "True"), clusterNode("n2", "True"), clusterNode("n3", "True"), clusterNode("n4", "True"),
		persistentVolume("static", "v1:n1:fast:theirs"), persistentVolume("down", "v1:n3:fast:down"), persistentVolume("a", "v1:n1:fast:a"), persistentVolume("b", "v1:n1:fast:b"), persistentVolume("c", "v1:n2:fast:c"),
		persistentVolume("d", "v1:n9:fast:d"), persistentVolume("e", "by-hand"),
	}, snapshotContent("s", "v1:n1:fast:s"), snapshotContent("t", "v1:n1:fast:t"), snapshotContent("u", "v1:n2:fast:u"), snapshotContent("w", "v1:n4:gone:w"), notCut)

	var out strings.Builder
	err = orphans{output: "table", endpoint: "unix://" + socket}.run(t.Context(), &out, clients)
	if err == nil || !strings.HasSuffix(err.Error(), "no answer from node n2, node n3, node n4") {
		t.Errorf("an incomplete list: %v", err)
	}
	if want := `KIND      NODE  ID                OBJECT  USED-BY     WHY
volume    n1    v1:n1:fast:lost   -       -           no object in Kubernetes
volume    n1    v1:n1:fast:b      b       ns/claim-b  not on the node
volume    n9    v1:n9:fast:d      d       ns/claim-d  the node is not in the cluster
volume    -     by-hand           e       ns/claim-e  not an id of this driver
snapshot  n1    v1:n1:fast:s-lost -       -           no object in Kubernetes
snapshot  n1    v1:n1:fast:t      t       ns/snap     not on the node
`; strings.Join(strings.Fields(out.String()), " ") != strings.Join(strings.Fields(want), " ") {
		t.Errorf("%s\nwant\n%s", out.String(), want)
	}

	d.volumes, d.snapshots, d.silent = nil, nil, nil
	out.Reset()
	err = orphans{output: "json", endpoint: "unix://" + socket}.run(t.Context(), &out, fakeClients(nil))
	if err != nil || strings.Join(strings.Fields(out.String()), "") != `{"orphans":[]}` {
		t.Errorf("%v\n%s", err, out.String())
	}
	out.Reset()
	if err := (orphans{output: "table", endpoint: "unix://" + socket}).run(t.Context(), &out, fakeClients(nil)); err != nil || out.String() != "No orphans.\n" {
		t.Errorf("%v\n%s", err, out.String())
	}
	if err := (orphans{output: "table", endpoint: "unix://" + socket + ".missing"}).run(t.Context(), &out, fakeClients(nil)); err == nil {
		t.Error("no error without a controller")
	}
}
