package cluster

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/build"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/images"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/kube"
)

// Kubectl returns kubectl for the cluster.
func (c *Config) Kubectl() *kube.Kubectl {
	return &kube.Kubectl{Program: filepath.Join(c.Programs, "kubectl"), Kubeconfig: c.Kubeconfig()}
}

// furnish waits for the nodes. It installs what a cluster needs for snapshots:
// the definitions of VolumeSnapshots, and the snapshot controller.
func (c *Client) furnish(ctx context.Context, set *build.Set, log io.Writer) error {
	start := time.Now()
	k := c.Kubectl()
	definitions, controller, err := snapshotManifests(ctx, set)
	if err != nil {
		return err
	}
	if err := k.Apply(ctx, definitions); err != nil {
		return err
	}
	if err := k.Apply(ctx, controller); err != nil {
		return err
	}
	for i := range c.Nodes {
		ready := func(s string) bool { return s == "True" }
		waiting, cancel := context.WithTimeout(ctx, bootTimeout)
		_, err := k.Until(waiting, ready, "get", "node", NodeName(i+1), "-o",
			`jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		cancel()
		if err != nil {
			return fmt.Errorf("%w; see the logs in %s", err, c.Logs(NodeName(i+1)))
		}
	}
	fmt.Fprintf(log, "nodes ready after %v\n", time.Since(start).Round(time.Second))
	// The snapshot controller works long before its rollout counts as complete.
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	_, err = k.Until(ctx, func(s string) bool { return s != "" }, "-n", "kube-system", "get", "deployment", "snapshot-controller",
		"-o", "jsonpath={.status.readyReplicas}")
	return err
}

var snapshotControllerImage = regexp.MustCompile(`image: \S*/snapshot-controller:\S+`)

// snapshotManifests returns the manifests of external-snapshotter's own
// release, with the name of the image that is built here.
func snapshotManifests(ctx context.Context, set *build.Set) (definitions, controller string, err error) {
	_, client, err := set.Module(ctx, "github.com/kubernetes-csi/external-snapshotter/client/v8")
	if err != nil {
		return "", "", err
	}
	_, server, err := set.Module(ctx, "github.com/kubernetes-csi/external-snapshotter/v8")
	if err != nil {
		return "", "", err
	}
	image, err := images.SidecarImage(ctx, set, "snapshot-controller")
	if err != nil {
		return "", "", err
	}
	definitions, err = concatenate(client, "config/crd/snapshot.storage.k8s.io_volumesnapshotclasses.yaml",
		"config/crd/snapshot.storage.k8s.io_volumesnapshotcontents.yaml", "config/crd/snapshot.storage.k8s.io_volumesnapshots.yaml")
	if err != nil {
		return "", "", err
	}
	controller, err = concatenate(server, "deploy/kubernetes/snapshot-controller/rbac-snapshot-controller.yaml",
		"deploy/kubernetes/snapshot-controller/setup-snapshot-controller.yaml")
	if err != nil {
		return "", "", err
	}
	return definitions, snapshotControllerImage.ReplaceAllString(controller, "image: "+image), nil
}

func concatenate(dir string, names ...string) (string, error) {
	var all string
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		all += "---\n" + string(data) + "\n"
	}
	return all, nil
}
