package lifecycle

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/cluster"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/install"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/kube"
)

// kubeletRestart kills the kubelet, as a crash would, and starts it again.
func (t *rig) kubeletRestart(ctx context.Context) error {
	node := cluster.NodeName(1)
	return t.undisturbed(ctx, func(ctx context.Context) error {
		if err := t.c.StopKubelet(ctx, node); err != nil {
			return err
		}
		if err := t.c.StartKubelet(ctx, node); err != nil {
			return err
		}
		return t.provision(ctx, "restarted")
	})
}

// kubeletDown deletes a pod while its kubelet is down. Once the kubelet is
// back, it must unmount the volume, and the volume must be usable.
func (t *rig) kubeletDown(ctx context.Context) error {
	node := cluster.NodeName(1)
	name := writer(node)
	volume, err := t.Field(ctx, "pvc/"+name, ".spec.volumeName")
	if err != nil {
		return err
	}
	if err := t.c.StopKubelet(ctx, node); err != nil {
		return err
	}
	if _, err := t.Run(ctx, "delete", "pod", name, "--wait=false"); err != nil {
		return err
	}
	if err := t.c.StartKubelet(ctx, node); err != nil {
		return err
	}
	if _, err := t.Run(ctx, "wait", "--for=delete", "pod/"+name, kube.Patience); err != nil {
		return err
	}
	if err := t.unmounted(ctx, node, volume); err != nil {
		return err
	}
	return t.writers(ctx)
}

// unmounted waits until no file system of a volume is mounted on a node.
func (t *rig) unmounted(ctx context.Context, node, volume string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		mounts, err := t.c.Output(ctx, node, "cat", "/proc/mounts")
		if err != nil {
			return err
		}
		if !strings.Contains(mounts, volume) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is still mounted on %s:\n%s", volume, node, mounts)
		case <-time.After(time.Second):
		}
	}
}

// powerCut cuts the power of a node that is in use, and boots the node again.
func (t *rig) powerCut(ctx context.Context) error {
	node := cluster.NodeName(2)
	name := writer(node)
	before, err := t.lines(ctx, node)
	if err != nil {
		return err
	}
	if err := t.c.Cut(ctx, node); err != nil {
		return err
	}
	if err := t.c.Boot(ctx, node); err != nil {
		return err
	}
	if err := t.Wait(ctx, "pod/"+name, ".status.containerStatuses[0].restartCount", "1"); err != nil {
		return err
	}
	if err := t.Wait(ctx, "pod/"+name, ".status.containerStatuses[0].ready", "true"); err != nil {
		return err
	}
	// All synced writes are there, and the file system is intact.
	if err := t.more(ctx, node, before); err != nil {
		return err
	}
	if err := t.provision(ctx, "after-cut"); err != nil {
		return err
	}
	_, err = install.Exec(ctx, t.Kubectl, node, "csi-dmsnap", "check")
	return err
}

// more checks that the writer on a node has lost no lines.
func (t *rig) more(ctx context.Context, node string, before int) error {
	after, err := t.lines(ctx, node)
	if err == nil && after < before {
		err = fmt.Errorf("the log of the writer on %s has %d lines, but had %d", node, after, before)
	}
	return err
}

// drain drains a node and brings it back. The node's pods go, and its volumes
// stay with their content.
func (t *rig) drain(ctx context.Context) error {
	node, other := cluster.NodeName(1), cluster.NodeName(2)
	before, err := t.lines(ctx, node)
	if err != nil {
		return err
	}
	volume, err := t.Field(ctx, "pvc/"+writer(node), ".spec.volumeName")
	if err != nil {
		return err
	}
	// The writers belong to no controller, and the driver's pods have a socket
	// in an emptyDir.
	_, err = t.Kubectl.Run(ctx, "drain", node, "--ignore-daemonsets", "--force", "--delete-emptydir-data", kube.Patience)
	if err != nil {
		return err
	}
	if err := t.unmounted(ctx, node, volume); err != nil {
		return err
	}
	if err := t.provisionOn(ctx, "drained", other); err != nil {
		return err
	}
	if _, err := t.Kubectl.Run(ctx, "uncordon", node); err != nil {
		return err
	}
	if err := t.writers(ctx); err != nil {
		return err
	}
	return t.more(ctx, node, before)
}
