package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/install"
)

// upgrade gives every pod of the driver a new template, so that all are
// replaced.
func (t *rig) upgrade(ctx context.Context) error {
	before, err := t.driverPods(ctx)
	if err != nil {
		return err
	}
	err = t.undisturbed(ctx, func(ctx context.Context) error {
		return install.Install(ctx, t.c, t.root, "node.podAnnotations.upgraded=yes", "controller.podAnnotations.upgraded=yes")
	})
	if err != nil {
		return err
	}
	after, err := t.driverPods(ctx)
	if err != nil {
		return err
	}
	for uid := range before {
		if after[uid] {
			return errors.New("a pod of the driver was not replaced by the upgrade: nothing was tested")
		}
	}
	return t.provision(ctx, "upgraded")
}

// driverPods returns the unique ids of the driver's pods.
func (t *rig) driverPods(ctx context.Context) (map[string]bool, error) {
	out, err := t.Kubectl.Run(ctx, "-n", install.Namespace, "get", "pods", "-o", "jsonpath={.items[*].metadata.uid}")
	if err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for uid := range strings.FieldsSeq(out) {
		ids[uid] = true
	}
	if len(ids) < t.c.Nodes+1 {
		return nil, fmt.Errorf("the driver has %d pods, want one for each of the %d nodes and a controller", len(ids), t.c.Nodes)
	}
	return ids, nil
}

// failover kills all pods of the controller while a claim waits.
func (t *rig) failover(ctx context.Context) error {
	return t.undisturbed(ctx, func(ctx context.Context) error {
		_, err := t.Kubectl.Run(ctx, "-n", install.Namespace, "delete", "pods", "-l", "app.kubernetes.io/component=controller",
			"--grace-period=0", "--force")
		if err != nil {
			return err
		}
		return t.provision(ctx, "failover")
	})
}
