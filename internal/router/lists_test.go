package router

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
)

// fill makes volumes on a node and returns all ids, sorted.
func (f *fake) fill(count int) (ids []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range count {
		name := fmt.Sprintf("v%02d", i)
		f.volumes[name] = &csi.Volume{VolumeId: f.id(name)}
		f.snapshots["s-"+name] = &csi.Snapshot{SnapshotId: f.id("s-" + name), SourceVolumeId: f.id(name)}
		ids = append(ids, f.id(name))
	}
	return ids
}

func volumeIDs(a *csi.ListVolumesResponse) (ids []string) {
	for _, e := range a.GetEntries() {
		ids = append(ids, e.GetVolume().GetVolumeId())
	}
	return ids
}

// TestList_pages: every page size yields all entries of all nodes once, in
// order.
func TestList_pages(t *testing.T) {
	nodes := cluster(t, 1, 1, 1, 1, 1)
	var want []string
	for i, count := range []int{3, 0, 5, 1, 0} {
		want = append(want, nodes[i].fill(count)...)
	}
	r := newRouter(t, nodes...)
	for limit := range int32(11) {
		var got []string
		token, pages := "", 0
		for {
			a, err := r.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: limit, StartingToken: token})
			if err != nil {
				t.Fatal(err)
			}
			if n := len(a.GetEntries()); limit > 0 && n > int(limit) || n == 0 && pages > 0 {
				t.Errorf("limit %d: a page of %d", limit, n)
			}
			got = append(got, volumeIDs(a)...)
			token = a.GetNextToken()
			if pages++; token == "" {
				break
			}
			if len(token) > 128 {
				t.Errorf("a token of %d bytes", len(token))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("limit %d: %v", limit, got)
		}
	}
	a, err := r.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: 1<<31 - 1})
	if err != nil || !slices.Equal(volumeIDs(a), want) {
		t.Errorf("the largest limit: %v, %v", a, err)
	}
	_, err = r.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: -1})
	wantCode(t, "a negative limit", err, codes.InvalidArgument)
	_, err = r.ListVolumes(t.Context(), &csi.ListVolumesRequest{StartingToken: "x"})
	wantCode(t, "no token of ours", err, codes.Aborted)
	_, err = emptyRouter(t).ListVolumes(t.Context(), &csi.ListVolumesRequest{})
	wantCode(t, "before the nodes are known", err, codes.Unavailable)
}

// TestList_changesBetweenPages: a token stays valid although its volume, its
// node and other volumes come or go before the next page.
func TestList_changesBetweenPages(t *testing.T) {
	nodes := cluster(t, 1, 1, 1)
	for _, n := range nodes {
		n.fill(4)
	}
	r := newRouter(t, nodes...)
	first, err := r.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: 6})
	if err != nil || first.GetNextToken() != "v1:n2:fast:v01" {
		t.Fatalf("%v, %v", first, err)
	}
	if _, err := r.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: first.GetNextToken()}); err != nil {
		t.Fatal(err)
	}
	nodes[1].volumes["v01a"] = &csi.Volume{VolumeId: nodes[1].id("v01a")}
	nodes[1].volumes["v00a"] = &csi.Volume{VolumeId: nodes[1].id("v00a")} // belongs to the page before
	rest, err := r.ListVolumes(t.Context(), &csi.ListVolumesRequest{StartingToken: first.GetNextToken()})
	if err != nil || len(rest.GetEntries()) != 7 || rest.GetEntries()[0].GetVolume().GetVolumeId() != "v1:n2:fast:v01a" {
		t.Errorf("%v, %v", volumeIDs(rest), err)
	}
	r.SetNodes(nodesOf(nodes[0], nodes[2]))
	rest, err = r.ListVolumes(t.Context(), &csi.ListVolumesRequest{StartingToken: first.GetNextToken()})
	if err != nil || len(rest.GetEntries()) != 4 {
		t.Errorf("the token's node is gone: %v, %v", volumeIDs(rest), err)
	}
}

// TestList_nodeDoesNotAnswer: an unfiltered list names the nodes that it lacks;
// a filtered list needs its node.
func TestList_nodeDoesNotAnswer(t *testing.T) {
	nodes := cluster(t, 1, 1, 1)
	for _, n := range nodes {
		n.fill(2)
	}
	r := newRouter(t, nodes...)
	nodes[0].onBefore(func(context.Context, string) error { return errorf(codes.Internal, "broken") })
	r.SetNodes([]Node{nodes[0].node(), nodes[1].node(), nodes[2].gone(time.Now())})
	client := serve(t, r)
	var trailer metadata.MD
	a, err := client.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{}, grpc.Trailer(&trailer))
	if err != nil || len(a.GetEntries()) != 2 {
		t.Errorf("%v, %v", a, err)
	}
	if got := trailer.Get(callmeta.PartialKey); !slices.Equal(got, []string{"n1", "n3"}) {
		t.Errorf("left out are %v", got)
	}
	for _, c := range []struct {
		q    *csi.ListSnapshotsRequest
		want int
		code codes.Code
	}{
		{&csi.ListSnapshotsRequest{SnapshotId: nodes[1].id("s-v00")}, 1, codes.OK},
		{&csi.ListSnapshotsRequest{SnapshotId: nodes[1].id("s-v09")}, 0, codes.OK},
		{&csi.ListSnapshotsRequest{SourceVolumeId: nodes[1].id("v01")}, 1, codes.OK},
		{&csi.ListSnapshotsRequest{SnapshotId: nodes[1].id("s-v00"), SourceVolumeId: nodes[1].id("v01")}, 0, codes.OK},
		{&csi.ListSnapshotsRequest{SnapshotId: "x"}, 0, codes.OK},
		{&csi.ListSnapshotsRequest{SourceVolumeId: "x"}, 0, codes.OK},
		{&csi.ListSnapshotsRequest{SnapshotId: nodes[2].id("s-v00")}, 0, codes.Unavailable},
		{&csi.ListSnapshotsRequest{SourceVolumeId: nodes[2].id("v01")}, 0, codes.Unavailable},
		{&csi.ListSnapshotsRequest{SourceVolumeId: nodes[0].id("v01")}, 0, codes.Internal},
	} {
		a, err := client.ListSnapshots(t.Context(), c.q)
		wantCode(t, c.q.String(), err, c.code)
		if len(a.GetEntries()) != c.want {
			t.Errorf("%v: %v", c.q, a)
		}
	}
}

// serve makes a router listen and returns a client of it.
func serve(t *testing.T, r *Router) csi.ControllerClient {
	t.Helper()
	return csi.NewControllerClient(connect(t, r))
}

func connect(t *testing.T, r *Router) *grpc.ClientConn {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "csi.sock")
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- r.Serve(ctx, "unix://"+socket) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		stop()
		if err := <-ended; err != nil && !strings.Contains(err.Error(), "closed") {
			t.Error(err)
		}
	})
	return conn
}
