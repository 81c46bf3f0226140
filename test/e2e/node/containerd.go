package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/images"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/process"
)

const (
	containerdSocket = "/run/containerd/containerd.sock"
	cniPlugins       = "/usr/lib/cni"
	cniConfig        = "/etc/cni/net.d"
)

// Statistics are collected once an hour. Collected every second, as is
// containerd's default, they alone would take a third of the one slow
// processor.
var containerdConfig = `version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "` + containerdSocket + `"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  stats_collect_period = 3600
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "` + images.PauseImage + `"
[plugins."io.containerd.cri.v1.runtime"]
  stats_collect_period = "1h"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["` + cniPlugins + `"]
    conf_dir = "` + cniConfig + `"
`

// containerd writes containerd's configuration and returns how to start it. Its
// shim is in the same directory.
func containerd(programs, log string) (process.Spec, error) {
	const file = "/etc/containerd.toml"
	if err := os.WriteFile(file, []byte(containerdConfig), 0o644); err != nil {
		return process.Spec{}, err
	}
	return process.Spec{
		Argv: []string{filepath.Join(programs, "containerd"), "--config", file},
		Env:  []string{"PATH=" + programs + ":" + os.Getenv("PATH")}, // the import has no agent that sets PATH
		Log:  log,
	}, nil
}

// answers returns a function that succeeds if containerd answers.
func answers(programs string) func(context.Context) error {
	return func(ctx context.Context) error {
		return run(ctx, filepath.Join(programs, "ctr"), "--timeout", "2s", "version")
	}
}

// networkPods tells containerd which addresses this node's pods get. Addresses
// are not translated: all nodes have routes to the pods.
func networkPods(c *Config) error {
	conf := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipMasq": false,
	"ipam": {"type": "host-local", "subnet": %q, "routes": [{"dst": "0.0.0.0/0"}]}}]}
`, c.Pods)
	if err := os.MkdirAll(cniConfig, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(cniConfig, "10-pods.conflist"), []byte(conf), 0o644)
}

// Import unpacks the archives of images into the system disk of a node.
func Import(ctx context.Context, programs string, archives []string) error {
	if err := prepareSystem(); err != nil {
		return err
	}
	const log = "/run/containerd.log"
	spec, err := containerd(programs, log)
	if err != nil {
		return err
	}
	p, err := process.Start("containerd", spec)
	if err != nil {
		return err
	}
	defer p.End(10 * time.Second)
	if err := p.Poll(ctx, answers(programs)); err != nil {
		text, _ := os.ReadFile(log)
		return fmt.Errorf("%w\n%s", err, text)
	}
	for _, archive := range archives {
		if err := importArchive(ctx, programs, archive); err != nil {
			return err
		}
	}
	return nil
}

func importArchive(ctx context.Context, programs, archive string) error {
	err := run(ctx, filepath.Join(programs, "ctr"), "--namespace", "k8s.io", "images", "import", archive)
	if err != nil {
		return fmt.Errorf("importing %s: %w", archive, err)
	}
	return nil
}

func run(ctx context.Context, argv ...string) error {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return nil
}
