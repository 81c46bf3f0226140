package router

import (
	"context"
	"slices"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// sameNameLimit is how long other nodes have to answer that they use a snapshot's
// name. A node that does not answer does not delay a snapshot further.
const sameNameLimit = 2 * time.Second

// CreateSnapshot takes a snapshot on the node of its source. It fails with
// ALREADY_EXISTS if another node answers with a snapshot of that name, which is a
// snapshot of another volume. The names that csi-snapshotter makes end with a UUID
// and cannot exist elsewhere. For such a name CreateSnapshot asks no other node,
// so that no other node can prevent the snapshot.
func (r *Router) CreateSnapshot(ctx context.Context, q *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	switch {
	case q.GetName() == "":
		return nil, invalid("no snapshot name is given")
	case q.GetSourceVolumeId() == "":
		return nil, invalid("no source volume id is given")
	}
	source, ok := handle.Parse(q.GetSourceVolumeId())
	if !ok {
		return nil, notFound("source volume %q: not an id of this driver", q.GetSourceVolumeId())
	}
	if uuidAtEnd.MatchString(q.GetName()) {
		return call(ctx, r, source.Node, csi.ControllerClient.CreateSnapshot, q, callmeta.Conditions{})
	}
	others := slices.DeleteFunc(slices.Clone(r.fleet.ready()), func(n *member) bool { return n.short == source.Node })
	asking, cancel := context.WithTimeout(ctx, sameNameLimit)
	defer cancel()
	answers := ask(others, func(n *member) (*csi.CreateSnapshotResponse, error) {
		return call(asking, r, n.short, csi.ControllerClient.CreateSnapshot, q, callmeta.Conditions{OnlyExisting: true})
	})
	for _, a := range answers {
		if a.err == nil { // the node has the snapshot, see witness; an error proves nothing
			return nil, errorf(codes.AlreadyExists, "snapshot %q already exists on node %s, of volume %s", q.GetName(), a.node.Name, a.value.GetSnapshot().GetSourceVolumeId())
		}
	}
	return call(ctx, r, source.Node, csi.ControllerClient.CreateSnapshot, q, callmeta.Conditions{})
}

// DeleteSnapshot deletes a snapshot.
func (r *Router) DeleteSnapshot(ctx context.Context, q *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if foreign(q.GetSnapshotId()) {
		return &csi.DeleteSnapshotResponse{}, nil
	}
	return onSnapshot(ctx, r, csi.ControllerClient.DeleteSnapshot, q)
}

// GetSnapshot returns one snapshot.
func (r *Router) GetSnapshot(ctx context.Context, q *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	return onSnapshot(ctx, r, csi.ControllerClient.GetSnapshot, q)
}
