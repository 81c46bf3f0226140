package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/cluster"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/install"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/kube"
)

// The Secret in which the controllers keep their certificate authority, and its
// annotations (package trust).
const (
	secret           = "secret/" + install.Release + "-ca"
	annotationRotate = "dmsnap.csi-dmsnap.github.io/rotate"
	annotationAge    = "dmsnap.csi-dmsnap.github.io/next-published-at"
	caField          = `.data.ca\.crt`
)

// rotation has the certificate authority replaced, step by step. After each
// step it checks that claims are served and the writers are not disturbed. It
// does not wait for the hour between two steps, but sets the time of the first
// step back.
func (t *rig) rotation(ctx context.Context) error {
	driver := &kube.Namespace{Kubectl: t.Kubectl, Name: install.Namespace}
	before, err := driver.Field(ctx, secret, caField)
	if err != nil {
		return err
	}
	return t.undisturbed(ctx, func(ctx context.Context) error {
		if _, err := driver.Run(ctx, "annotate", secret, annotationRotate+"=now"); err != nil {
			return err
		}
		for i := range t.c.Nodes {
			if err := t.trusts(ctx, driver, cluster.NodeName(i+1), 2); err != nil {
				return err
			}
		}
		if err := t.provision(ctx, "next-published"); err != nil {
			return fmt.Errorf("with the next CA published: %w", err)
		}
		ago := time.Now().Add(-2 * time.Hour).UTC().Format(time.RFC3339)
		if _, err := driver.Run(ctx, "annotate", "--overwrite", secret, annotationAge+"="+ago); err != nil {
			return err
		}
		waiting, cancel := context.WithTimeout(ctx, 3*time.Minute)
		defer cancel()
		changed := func(s string) bool { return s != "" && s != before }
		if _, err := driver.Until(waiting, changed, "-n", driver.Name, "get", secret, "-o", "jsonpath={"+caField+"}"); err != nil {
			return fmt.Errorf("waiting for the next CA to sign: %w", err)
		}
		// This node gets its certificate from the new CA, and the others keep
		// theirs.
		pod, err := install.Pod(ctx, t.Kubectl, cluster.NodeName(1))
		if err != nil {
			return err
		}
		if err := driver.Delete(ctx, "pod/"+pod); err != nil {
			return err
		}
		if _, err := driver.Run(ctx, "rollout", "status", "daemonset/"+install.Release+"-node", kube.Patience); err != nil {
			return err
		}
		for i := range t.c.Nodes {
			if err := t.provisionOn(ctx, "rotated", cluster.NodeName(i+1)); err != nil {
				return fmt.Errorf("with the next CA signing: %w", err)
			}
		}
		return nil
	})
}

// trusts waits until the driver on a node has this number of CAs to trust.
func (t *rig) trusts(ctx context.Context, driver *kube.Namespace, node string, want int) error {
	pod, err := install.Pod(ctx, t.Kubectl, node)
	if err != nil {
		return err
	}
	uid, err := driver.Field(ctx, "pod/"+pod, ".metadata.uid")
	if err != nil {
		return err
	}
	file := "/var/lib/kubelet/pods/" + uid + "/volumes/kubernetes.io~projected/config/trust/ca.crt"
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	for {
		text, err := t.c.Output(ctx, node, "cat", file)
		have := strings.Count(text, "BEGIN CERTIFICATE")
		if err == nil && have == want {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s on %s has %d certificates, want %d", file, node, have, want), err)
		case <-time.After(time.Second):
		}
	}
}
