// Package sanity runs csi-test's suite on a node of the cluster, against the
// controller role and the role of that node.
package sanity

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
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/report"
)

const (
	kubeletDir = "/var/lib/kubelet"
	driver     = "dmsnap.csi-dmsnap.github.io"
	// limit is how long one run may take.
	limit = 20 * time.Minute
)

// Run runs the suite several times and adds each run to the report. It compiles
// the tests from the repository at root, and writes logs to the directory out.
func Run(ctx context.Context, c *cluster.Client, root, out string, times int, r *report.Report) error {
	node, socket, err := controller(ctx, c)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	binary := filepath.Join(c.Logs(node), "sanity.test")
	compile := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "cluster", "-buildvcs=false", "-o", binary, "./test/sanity")
	compile.Dir = root
	compile.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if text, err := compile.CombinedOutput(); err != nil {
		return fmt.Errorf("compiling test/sanity: %w: %s", err, text)
	}
	dir := kubeletDir + "/plugins/" + driver
	for i := range times {
		name := fmt.Sprintf("controller and %s, run %d of %d", node, i+1, times)
		log := filepath.Join(out, fmt.Sprintf("sanity-%d.log", i+1))
		_ = r.Run(ctx, "csi-sanity", name, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			result, err := c.Run(ctx, node, "env", "SANITY_NODE=unix://"+dir+"/csi.sock", "SANITY_CONTROLLER=unix://"+socket,
				"SANITY_DIR="+dir+"/sanity", binary, "-test.v", "-test.timeout=0")
			if err != nil {
				return err
			}
			if err := os.WriteFile(log, []byte(result.Stdout+result.Stderr), 0o644); err != nil {
				return err
			}
			if result.Code != 0 {
				return fmt.Errorf("specs failed; see %s", log)
			}
			return nil
		})
	}
	return nil
}

// controller returns a node that runs a pod of the controller, and the path on
// that node of the socket that the pod serves to its sidecars.
func controller(ctx context.Context, c *cluster.Client) (node, socket string, err error) {
	out, err := c.Kubectl().Run(ctx, "-n", install.Namespace, "get", "pods", "-l", "app.kubernetes.io/component=controller",
		"--field-selector", "status.phase=Running", "-o", `jsonpath={range .items[*]}{.spec.nodeName} {.metadata.uid}{"\n"}{end}`)
	if err != nil {
		return "", "", err
	}
	node, uid, found := strings.Cut(strings.SplitN(out, "\n", 2)[0], " ")
	if !found {
		return "", "", errors.New("no pod of the controller is running")
	}
	pattern := filepath.Join(kubeletDir, "pods", uid, "volumes/kubernetes.io~empty-dir/*/csi.sock")
	socket, err = c.Output(ctx, node, "sh", "-c", "ls "+pattern)
	return node, strings.TrimSpace(socket), err
}
