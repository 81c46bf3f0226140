package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/cluster"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/install"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/kube"
)

// losses has the objects that stand for a volume and its snapshot on a lost
// node, and their ids.
type losses struct {
	volume, content      string
	volumeID, snapshotID string
}

// noticed is how long Kubernetes may take to notice that a node is down, or is
// back.
const noticed = 4 * time.Minute

// lost follows docs/runbooks/node-lost.md. A node ends for good, the objects
// that stand for its volumes are deleted, and then the node comes back with its
// disks after all.
func (t *rig) lost(ctx context.Context) error {
	node := cluster.NodeName(2)
	on, err := t.snapshotOf(ctx, writer(node))
	if err != nil {
		return err
	}
	if _, err := t.forget(ctx, node); err == nil {
		return fmt.Errorf("forget-node succeeds although %s is Ready", node)
	}
	if err := t.c.Cut(ctx, node); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, noticed)
	defer cancel()
	down := func(status string) bool { return status == "Unknown" }
	if _, err := t.Kubectl.Until(waiting, down, "get", "node", node, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`); err != nil {
		return err
	}
	if err := t.forgotten(ctx, node, on); err != nil {
		return err
	}
	if err := t.provisionOn(ctx, "after-loss", cluster.NodeName(1)); err != nil {
		return fmt.Errorf("on the other node: %w", err)
	}
	if err := t.c.Boot(ctx, node); err != nil {
		return err
	}
	return t.cameBack(ctx, node, on)
}

// snapshotOf takes a snapshot of a claim, with the claim's name.
func (t *rig) snapshotOf(ctx context.Context, claim string) (losses, error) {
	if err := t.Apply(ctx, kube.Snapshot(claim, claim)); err != nil {
		return losses{}, err
	}
	if err := t.Wait(ctx, "volumesnapshot/"+claim, ".status.readyToUse", "true"); err != nil {
		return losses{}, err
	}
	var on losses
	var failed []error
	field := func(into *string, object, field string) {
		var err error
		*into, err = t.Field(ctx, object, field)
		failed = append(failed, err)
	}
	field(&on.volume, "pvc/"+claim, ".spec.volumeName")
	field(&on.content, "volumesnapshot/"+claim, ".status.boundVolumeSnapshotContentName")
	field(&on.volumeID, "pv/"+on.volume, ".spec.csi.volumeHandle")
	field(&on.snapshotID, "volumesnapshotcontent/"+on.content, ".status.snapshotHandle")
	return on, errors.Join(failed...)
}

// forget runs csi-dmsnap forget-node on this machine, like kubectl.
func (t *rig) forget(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(t.root, "out", "image", "csi-dmsnap-amd64"), append([]string{"forget-node"}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+t.Kubeconfig)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("csi-dmsnap forget-node %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// forgotten deletes all objects that stand for volumes and snapshots on a node.
func (t *rig) forgotten(ctx context.Context, node string, on losses) error {
	objects := func() (string, error) { return t.Kubectl.Run(ctx, "get", "pv,volumesnapshotcontent", "-o", "name") }
	shown, err := t.forget(ctx, node)
	if err != nil {
		return err
	}
	there, err := objects()
	if err != nil {
		return err
	}
	for _, o := range []string{on.volume, on.content} {
		if !strings.Contains(shown, o) || !strings.Contains(there, o) {
			return fmt.Errorf("%s is missing in the output of forget-node:\n%s\nor among the objects after it:\n%s", o, shown, there)
		}
	}
	if _, err := t.Kubectl.Run(ctx, "delete", "node", node); err != nil {
		return err
	}
	if _, err := t.forget(ctx, node, "--yes"); err != nil {
		return err
	}
	if there, err = objects(); err != nil {
		return err
	}
	for _, o := range []string{on.volume, on.content} {
		if strings.Contains(there, o) {
			return fmt.Errorf("%s still exists after forget-node --yes", o)
		}
	}
	name := writer(node)
	if err := t.Wait(ctx, "pvc/"+name, ".status.phase", "Lost"); err != nil {
		return err
	}
	if err := t.Delete(ctx, "pod/"+name, "--force", "--ignore-not-found"); err != nil {
		return err
	}
	return t.Delete(ctx, "pvc/"+name, "volumesnapshot/"+name)
}

// cameBack waits for a node, and deletes the volume and the snapshot on its
// disks that Kubernetes no longer knows.
func (t *rig) cameBack(ctx context.Context, node string, on losses) error {
	if err := t.orphans(ctx, on.volumeID, on.snapshotID); err != nil {
		return err
	}
	if err := t.Apply(ctx, kube.Static("orphan", on.volumeID, node, "Delete"), kube.StaticSnapshot("orphan", t.Name, on.snapshotID)); err != nil {
		return err
	}
	if err := t.Wait(ctx, "pvc/orphan", ".status.phase", "Bound"); err != nil {
		return err
	}
	if err := t.Wait(ctx, "volumesnapshot/orphan", ".status.readyToUse", "true"); err != nil {
		return err
	}
	if err := t.Delete(ctx, "pvc/orphan", "volumesnapshot/orphan"); err != nil {
		return err
	}
	return t.orphans(ctx)
}

// orphans waits until the command lists exactly these ids.
func (t *rig) orphans(ctx context.Context, ids ...string) error {
	ctx, cancel := context.WithTimeout(ctx, noticed)
	defer cancel()
	for {
		out, err := install.Controller(ctx, t.Kubectl, "csi-dmsnap", "orphans", "--settle=1s")
		good := err == nil && strings.Count(out, "\n") == len(ids)+1 // the first line is a heading, or says that there are none
		for _, id := range ids {
			good = good && strings.Contains(out, id)
		}
		if good {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("the orphans are not %v, but:\n%s", ids, out), err)
		case <-time.After(time.Second):
		}
	}
}
