package router

import (
	"cmp"
	"context"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

const (
	// listLimit is how long one node has to answer its part of an unfiltered list.
	listLimit = 10 * time.Second
	// pageSize is the number of entries that the router asks a node for at a time.
	// So many entries are far smaller than maxPage.
	pageSize = 500
	// maxEntries and maxList limit a node's list. The metadata area of a pool has
	// room for about 10,000 volumes and snapshots. An entry of a list has about 300
	// bytes.
	maxEntries = 50_000
	maxList    = 16 << 20 // bytes
)

// list collects a page from the nodes, in the order of their short names. A node
// sorts its entries by id, and its token is the id of the last entry of a page.
// Such an id names its node, so it is also the router's token. A page is therefore
// right even if entries or nodes came or went since the last page.
// list leaves out nodes that do not answer and names them in the trailer
// (callmeta.PartialKey). Errors: INVALID_ARGUMENT for a negative limit, ABORTED for
// a token that is not from this driver, UNAVAILABLE if the nodes are not known yet.
func list[E proto.Message](ctx context.Context, r *Router, token string, limit int32, idOf func(E) string,
	of func(ctx context.Context, node, token string, limit int32) (entries []E, next string, err error)) (page []E, next string, err error) {
	if limit < 0 {
		return nil, "", invalid("max_entries is negative: %d", limit)
	}
	start, ok := handle.Parse(token)
	if token != "" && !ok {
		return nil, "", aborted("starting_token %q is not from this driver; start the list again", token)
	}
	if !r.fleet.known() {
		return nil, "", unavailable("the nodes are not known yet")
	}
	for _, n := range r.fleet.all() {
		if n.short < start.Node {
			continue
		}
		from := ""
		if n.short == start.Node {
			from = token
		}
		entries, err := wholeList(ctx, n.short, from, limit, len(page), of)
		if ctx.Err() != nil {
			return nil, "", ctx.Err()
		}
		if err != nil {
			r.partial(ctx, n, err)
			continue
		}
		page = append(page, entries...)
		if limit > 0 && len(page) > int(limit) {
			break
		}
	}
	page, next = firstPage(page, limit, idOf)
	return page, next, nil
}

// firstPage returns the first page of all entries, and the token of the next page.
func firstPage[E any](all []E, limit int32, idOf func(E) string) (page []E, next string) {
	if limit > 0 && len(all) > int(limit) {
		return all[:limit], idOf(all[limit-1])
	}
	return all, ""
}

// wholeList returns one node's entries for a page that already has have entries.
// If the node has more entries than fit, wholeList returns one entry too many, so
// that the caller knows that there is a next page.
// Errors: those of the node, INTERNAL for a list that is too long.
func wholeList[E proto.Message](ctx context.Context, node, token string, limit int32, have int,
	of func(ctx context.Context, node, token string, limit int32) ([]E, string, error)) ([]E, error) {
	ctx, cancel := context.WithTimeout(ctx, listLimit)
	defer cancel()
	var all []E
	bytes := 0
	for {
		room := int64(pageSize)
		if limit > 0 {
			room = min(room, int64(limit)-int64(have)-int64(len(all))+1)
		}
		entries, next, err := of(ctx, node, token, int32(room))
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
		for _, e := range entries {
			bytes += proto.Size(e)
		}
		if len(all) > maxEntries || bytes > maxList {
			return nil, errorf(codes.Internal, "node %s: its list has more than %d entries or %d bytes", node, maxEntries, maxList)
		}
		if next == "" || limit > 0 && have+len(all) > int(limit) {
			return all, nil
		}
		token = next
	}
}

// partial records that a list lacks the entries of a node: in the metrics, the log
// and the trailer.
func (r *Router) partial(ctx context.Context, n *member, err error) {
	r.metrics.partialLists.Inc()
	klog.FromContext(ctx).Info("Left a node out of a list", "node", n.Name, "err", err)
	if err := grpc.SetTrailer(ctx, metadata.Pairs(callmeta.PartialKey, n.Name)); err != nil {
		klog.FromContext(ctx).Error(err, "Could not name the nodes that a list lacks")
	}
}

// ListVolumes returns the volumes of all nodes, page by page.
func (r *Router) ListVolumes(ctx context.Context, q *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	entries, next, err := list(ctx, r, q.GetStartingToken(), q.GetMaxEntries(), volumeID,
		func(ctx context.Context, node, token string, limit int32) ([]*csi.ListVolumesResponse_Entry, string, error) {
			a, err := call(ctx, r, node, csi.ControllerClient.ListVolumes,
				&csi.ListVolumesRequest{StartingToken: token, MaxEntries: limit}, callmeta.Conditions{})
			return a.GetEntries(), a.GetNextToken(), err
		})
	if err != nil {
		return nil, err
	}
	return &csi.ListVolumesResponse{Entries: entries, NextToken: next}, nil
}

// ControllerListVolumeHealth returns the health of all volumes that have a problem.
func (r *Router) ControllerListVolumeHealth(ctx context.Context, q *csi.ControllerListVolumeHealthRequest) (*csi.ControllerListVolumeHealthResponse, error) {
	entries, next, err := list(ctx, r, q.GetStartingToken(), q.GetMaxEntries(), (*csi.VolumeHealth).GetVolumeId,
		func(ctx context.Context, node, token string, limit int32) ([]*csi.VolumeHealth, string, error) {
			a, err := call(ctx, r, node, csi.ControllerClient.ControllerListVolumeHealth,
				&csi.ControllerListVolumeHealthRequest{StartingToken: token, MaxEntries: limit}, callmeta.Conditions{})
			return a.GetEntries(), a.GetNextToken(), err
		})
	if err != nil {
		return nil, err
	}
	return &csi.ControllerListVolumeHealthResponse{Entries: entries, NextToken: next}, nil
}

// ListSnapshots returns the snapshots of all nodes, page by page. For one snapshot,
// or the snapshots of one volume, it asks only the node in the id. That node must
// answer.
func (r *Router) ListSnapshots(ctx context.Context, q *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	of := func(ctx context.Context, node, token string, limit int32) ([]*csi.ListSnapshotsResponse_Entry, string, error) {
		a, err := call(ctx, r, node, csi.ControllerClient.ListSnapshots, &csi.ListSnapshotsRequest{
			StartingToken: token, MaxEntries: limit, SnapshotId: q.GetSnapshotId(), SourceVolumeId: q.GetSourceVolumeId(), Secrets: q.GetSecrets(),
		}, callmeta.Conditions{})
		return a.GetEntries(), a.GetNextToken(), err
	}
	if id := cmp.Or(q.GetSnapshotId(), q.GetSourceVolumeId()); id != "" && q.GetMaxEntries() >= 0 {
		if foreign(q.GetSnapshotId()) || foreign(q.GetSourceVolumeId()) {
			return &csi.ListSnapshotsResponse{}, nil
		}
		i, _ := handle.Parse(id)
		all, err := wholeList(ctx, i.Node, q.GetStartingToken(), q.GetMaxEntries(), 0, of)
		page, next := firstPage(all, q.GetMaxEntries(), snapshotID)
		return &csi.ListSnapshotsResponse{Entries: page, NextToken: next}, err
	}
	entries, next, err := list(ctx, r, q.GetStartingToken(), q.GetMaxEntries(), snapshotID, of)
	if err != nil {
		return nil, err
	}
	return &csi.ListSnapshotsResponse{Entries: entries, NextToken: next}, nil
}
