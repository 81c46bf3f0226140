package events

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// reminder is which process of a node was reminded last. It is used by one goroutine
// at a time.
type reminder struct{ epoch string }

// headerLimit is how long a node may take to tell its epoch. An older node tells it
// only with its first report.
const headerLimit = 5 * time.Second

// due returns the epoch of the process at the other end of the stream, "" if it is
// unknown, and whether the process must be reminded. A process is reminded once.
// Streams break and end for many reasons, and with thousands of nodes a stream does so
// every second.
func (r *reminder) due(ctx context.Context, stream interface{ Header() (metadata.MD, error) }) (epoch string, due bool) {
	header := make(chan metadata.MD, 1)
	go func() { // until the stream ends
		md, _ := stream.Header()
		header <- md
	}()
	late := time.NewTimer(headerLimit)
	defer late.Stop()
	select {
	case <-ctx.Done():
		return "", false
	case <-late.C:
		return "", true
	case md := <-header:
		told := md.Get(roleapi.EpochKey)
		if len(told) == 0 {
			return "", ctx.Err() == nil
		}
		return told[0], r.epoch != told[0]
	}
}

// remind asks a node for one volume in each of its pools that has PersistentVolumes.
// The answer does not matter. The question tells the node that an optional pool has
// existed, which the node cannot know by itself when the pool's disks are gone.
// done is false if the node must be reminded again.
func (e *Emitter) remind(ctx context.Context, node string, conn grpc.ClientConnInterface) (done bool) {
	ctx, cancel := context.WithTimeout(ctx, dealLimit)
	defer cancel()
	log := klog.FromContext(ctx).WithValues("node", node)
	ids, err := e.objects.claims.ofPools(ctx, handle.ShortNode(node))
	if err != nil {
		log.Error(err, "Could not tell a node which of its pools have volumes")
		return false
	}
	for _, id := range ids {
		_, err := csi.NewControllerClient(conn).ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: id})
		log.V(4).Info("Asked for a volume in a pool", "id", id, "err", err)
	}
	return ctx.Err() == nil
}

// ofPools returns the id of one object for each pool of the node with that short name.
func (i *index) ofPools(ctx context.Context, short string) ([]string, error) {
	if _, _, err := i.find(ctx, ""); err != nil { // fills the index if it is not fresh
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.pools == nil {
		i.pools = map[string]map[string]string{}
		for id := range i.known {
			if h, ok := handle.Parse(id); ok {
				if i.pools[h.Node] == nil {
					i.pools[h.Node] = map[string]string{}
				}
				i.pools[h.Node][h.Pool] = id
			}
		}
	}
	return slices.Sorted(maps.Values(i.pools[short])), nil
}
