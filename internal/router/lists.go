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
	// listLimit is how long one node has to answer for an unfiltered list.
	listLimit = 10 * time.Second
	// pageSize is how many entries a node is asked for at a time: they are far smaller than maxPage.
	pageSize = 500
	// maxEntries and maxList are what a node may have in a list: its metadata areas
	// have room for some 10,000 volumes and snapshots each, of 300 bytes.
	maxEntries = 50_000
	maxList    = 16 << 20 // bytes
)

// list collects a page from the nodes, which are gone through by their short
// names. A node's entries are sorted by id and its tokens are the id of the
// last entry of a page, so such an id, which names its node, is the router's
// token too: a page is right whatever came or went in between, also a node.
// Nodes that do not answer are left out, and named in the trailer
// (callmeta.PartialKey). Errors: ABORTED for a token that is none.
func list[E proto.Message](ctx context.Context, r *Router, token string, limit int32, idOf func(E) string,
	of func(ctx context.Context, node, token string, limit int32) (entries []E, next string, err error)) (page []E, next string, err error) {
	if limit < 0 {
		return nil, "", invalid("max_entries is negative: %d", limit)
	}
	start, ok := handle.Parse(token)
	if token != "" && !ok {
		return nil, "", aborted("starting_token %q is not one that this driver gave: start again", token)
	}
	if !r.fleet.known() {
		return nil, "", unavailable("it is not known yet which nodes there are")
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

// firstPage cuts what is more than a page off, and returns the token of the next.
func firstPage[E any](all []E, limit int32, idOf func(E) string) (page []E, next string) {
	if limit > 0 && len(all) > int(limit) {
		return all[:limit], idOf(all[limit-1])
	}
	return all, ""
}

// wholeList returns what one node has of a page on which there are have
// entries already, and one entry more if there is one, which tells that there
// is a next page. INTERNAL if that has no end.
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

// partial notes that a list lacks the entries of a node.
func (r *Router) partial(ctx context.Context, n member, err error) {
	r.metrics.partialLists.Inc()
	klog.FromContext(ctx).Info("A node is left out of a list", "node", n.Name, "err", err)
	if err := grpc.SetTrailer(ctx, metadata.Pairs(callmeta.PartialKey, n.Name)); err != nil {
		klog.FromContext(ctx).Error(err, "Telling which nodes are left out of a list")
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

// ControllerListVolumeHealth returns the volumes with which something is wrong.
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

// ListSnapshots returns the snapshots of all nodes, page by page. Those of one
// volume, or one snapshot, are asked of their node alone, which must answer.
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
