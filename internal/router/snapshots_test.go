package router

import (
	"context"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

// TestCreateSnapshot_names: a snapshot name exists on one node only, and a node
// that does not answer delays no snapshot.
func TestCreateSnapshot_names(t *testing.T) {
	nodes := cluster(t, 1, 1, 1)
	for _, n := range nodes {
		n.fill(1)
	}
	r := newRouter(t, nodes...)
	cut := func(name, source string) error {
		_, err := r.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: source})
		return err
	}
	for i := range 2 {
		wantCode(t, "cut, and again", cut("s", nodes[0].id("v00")), codes.OK)
		wantCode(t, "the same name on another node", cut("s", nodes[1].id("v00")), codes.AlreadyExists)
		wantCode(t, "the same name on the same node", cut("s", nodes[0].id("v01")), codes.AlreadyExists)
		if i == 0 && nodes[0].requests("CreateSnapshot") != 2 {
			t.Errorf("node n1 saw %v", nodes[0].seen)
		}
	}
	for _, c := range []struct {
		name, source string
		want         codes.Code
	}{
		{"", nodes[0].id("v00"), codes.InvalidArgument},
		{"x", "", codes.InvalidArgument},
		{"x", "some-volume", codes.NotFound},
		{"x", "v1:n9:fast:v", codes.Unavailable},
	} {
		wantCode(t, c.name+" of "+c.source, cut(c.name, c.source), c.want)
	}
	// A node that does not answer delays no snapshot.
	nodes[2].onBefore(func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() })
	began := time.Now()
	wantCode(t, "another node is stuck", cut("t", nodes[0].id("v00")), codes.OK)
	if took := time.Since(began); took > 4*sameNameLimit {
		t.Errorf("it took %v", took)
	}
	r.SetNodes([]Node{nodes[0].node(), nodes[1].gone(time.Now())})
	wantCode(t, "another node is down", cut("u", nodes[0].id("v00")), codes.OK)
	wantCode(t, "its node is down", cut("w", nodes[1].id("v00")), codes.Unavailable)
	for name, want := range map[string]codes.Code{"x": codes.OK, nodes[1].id("s"): codes.Unavailable, "": codes.InvalidArgument} {
		_, err := r.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: name})
		wantCode(t, "delete "+name, err, want)
	}
}
