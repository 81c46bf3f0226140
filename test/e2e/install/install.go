// Package install installs the driver in a cluster as a user does: by its Helm
// chart, from its image's archive.
package install

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/cluster"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/kube"
)

const (
	// Namespace is the namespace of the driver.
	Namespace = "csi-dmsnap"
	// Release is the name of the Helm release; the names of the chart's objects contain it.
	Release = "csi-dmsnap"
)

//go:embed values.yaml
var values []byte

// Install imports the image into all nodes and installs or upgrades the chart
// of the repository at root. It uses the values of the tests and those in more,
// which have the form of helm's --set.
func Install(ctx context.Context, c *cluster.Client, root string, more ...string) error {
	archive := filepath.Join(root, "out", "image", "csi-dmsnap-amd64.tar")
	for i := range c.Nodes {
		if err := load(ctx, c, cluster.NodeName(i+1), archive); err != nil {
			return err
		}
	}
	file := filepath.Join(c.Dir, "values.yaml")
	if err := os.WriteFile(file, values, 0o644); err != nil {
		return err
	}
	args := []string{
		"upgrade", "--install", Release, filepath.Join(root, "deploy", "helm", "csi-dmsnap"),
		"--namespace", Namespace, "--create-namespace", "--values", file, "--wait", "--timeout", "5m",
	}
	for _, value := range more {
		args = append(args, "--set", value)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(c.Programs, "helm"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
	if out, err := cmd.CombinedOutput(); err != nil {
		pods, _ := c.Kubectl().Run(ctx, "-n", Namespace, "get", "pods", "-o", "wide")
		return fmt.Errorf("helm %s: %w: %s\n%s", strings.Join(args, " "), err, out, pods)
	}
	return nil
}

// load imports an image's archive into the store of a node.
func load(ctx context.Context, c *cluster.Client, node, archive string) error {
	data, err := os.ReadFile(archive)
	if err != nil {
		return fmt.Errorf("reading the driver's image: %w; run make image", err)
	}
	// The node reliably sees new files only in the shared directory.
	shared := filepath.Join(c.Logs(node), "image.tar")
	if err := os.WriteFile(shared, data, 0o644); err != nil {
		return err
	}
	_, err = c.Output(ctx, node, "ctr", "--namespace", "k8s.io", "images", "import", shared)
	return err
}

// Pod returns the name of the driver's pod on a node.
func Pod(ctx context.Context, k *kube.Kubectl, node string) (string, error) {
	name, err := k.Run(ctx, "-n", Namespace, "get", "pods", "-o", "jsonpath={.items[*].metadata.name}",
		"-l", "app.kubernetes.io/component=node", "--field-selector", "status.phase=Running,spec.nodeName="+node)
	if err == nil && len(strings.Fields(name)) != 1 {
		err = fmt.Errorf("pods of the driver on %s: %q, want one", node, name)
	}
	return name, err
}

// Exec runs a command in the driver's pod on a node.
func Exec(ctx context.Context, k *kube.Kubectl, node string, argv ...string) (string, error) {
	pod, err := Pod(ctx, k, node)
	if err != nil {
		return "", err
	}
	return k.Run(ctx, append([]string{"-n", Namespace, "exec", pod, "--"}, argv...)...)
}

// Controller runs a command in a pod of the controller.
func Controller(ctx context.Context, k *kube.Kubectl, argv ...string) (string, error) {
	return k.Run(ctx, append([]string{"-n", Namespace, "exec", "deploy/" + Release + "-controller", "-c", "csi-dmsnap", "--"}, argv...)...)
}
