package events

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// remind asks a node for one volume in each of its pools that has PersistentVolumes.
// The answer does not matter. The question tells the node that an optional pool has
// existed, which the node cannot know by itself when the pool's disks are gone.
func (e *Emitter) remind(ctx context.Context, node string, conn grpc.ClientConnInterface) {
	ctx, cancel := context.WithTimeout(ctx, dealLimit)
	defer cancel()
	log := klog.FromContext(ctx).WithValues("node", node)
	ids, err := e.objects.claims.ids(ctx)
	if err != nil {
		log.Error(err, "Could not tell a node which of its pools have volumes")
	}
	asked := map[string]bool{}
	for _, id := range ids {
		i, ok := handle.Parse(id)
		if !ok || i.Node != handle.ShortNode(node) || asked[i.Pool] {
			continue
		}
		asked[i.Pool] = true
		_, err := csi.NewControllerClient(conn).ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: id})
		log.V(4).Info("Asked for a volume in a pool", "pool", i.Pool, "id", id, "err", err)
	}
}

// ids returns the ids of all objects in the index.
func (i *index) ids(ctx context.Context) ([]string, error) {
	if _, _, err := i.find(ctx, ""); err != nil { // fills the index if it is not fresh
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	var all []string
	for id := range i.known {
		all = append(all, id)
	}
	return all, nil
}
