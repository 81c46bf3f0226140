// Package kube runs kubectl and makes manifests for it.
package kube

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Kubectl runs the program kubectl for one cluster.
type Kubectl struct {
	Program    string
	Kubeconfig string
}

// Run runs kubectl and returns what it writes to its standard output.
func (k *Kubectl) Run(ctx context.Context, args ...string) (string, error) {
	return k.run(ctx, "", args...)
}

// Apply applies manifests.
func (k *Kubectl) Apply(ctx context.Context, manifests string, args ...string) error {
	_, err := k.run(ctx, manifests, append([]string{"apply", "-f", "-"}, args...)...)
	return err
}

func (k *Kubectl) run(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, k.Program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+k.Kubeconfig)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Until runs kubectl until want returns true for its output. It returns the
// last output, with an error if the context ends first.
func (k *Kubectl) Until(ctx context.Context, want func(string) bool, args ...string) (string, error) {
	for {
		out, err := k.Run(ctx, args...)
		if err == nil && want(out) {
			return out, nil
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("kubectl %s: %w; the last output is %q", strings.Join(args, " "), ctx.Err(), out)
			}
			return out, err
		case <-time.After(300 * time.Millisecond):
		}
	}
}
