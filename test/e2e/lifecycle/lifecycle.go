// Package lifecycle tests events in the life of a cluster: upgrades, failures
// of nodes, of the kubelet and of the controller, and new certificates.
package lifecycle

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/cluster"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/kube"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/report"
)

const suite = "lifecycle"

// rig has a pod on every node that continuously writes to a volume.
type rig struct {
	*kube.Namespace
	c    *cluster.Client
	root string // of the repository
}

// Run runs the tests whose names match and adds them to the report.
func Run(ctx context.Context, c *cluster.Client, root string, match *regexp.Regexp, r *report.Report) error {
	t := &rig{&kube.Namespace{Kubectl: c.Kubectl(), Name: "lifecycle"}, c, root}
	if err := r.Run(ctx, suite, "a writer on every node", t.writers); err != nil {
		return err
	}
	tests := []struct {
		name string
		do   func(context.Context) error
	}{
		{"helm upgrade under I/O", t.upgrade},
		{"controller's pods are killed", t.failover},
		{"certificate authority is replaced", t.rotation},
		{"kubelet restarts", t.kubeletRestart},
		{"kubelet is down while a pod is deleted", t.kubeletDown},
		{"power cut of a node", t.powerCut},
		{"a node is drained", t.drain},
		{"a node is lost for good, and comes back after all", t.lost},
	}
	for _, test := range tests {
		// Each test continues with the cluster that the one before has left, so no failure is hidden.
		if match.MatchString(test.name) {
			_ = r.Run(ctx, suite, test.name, test.do)
		}
	}
	_ = r.Run(ctx, suite, "clean up", t.Clear)
	return nil
}

// lines counts the lines in the log of the writer on a node.
func (t *rig) lines(ctx context.Context, node string) (int, error) {
	out, err := t.Shell(ctx, writer(node), "wc -l < /data/log")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(out)
}

// writer returns the name of a node's writer pod and of its claim.
func writer(node string) string { return "writer-" + node }

// write is a shell command that appends the time, in seconds, to a file, and
// ends if it cannot.
const write = `set -e; while :; do date +%s >> /data/log; sync -d /data/log; sleep 0.3; done`

func (t *rig) writers(ctx context.Context) error {
	if err := t.Create(ctx); err != nil {
		return err
	}
	for i := range t.c.Nodes {
		node := cluster.NodeName(i + 1)
		name := writer(node)
		pod := onNode(kube.Pod(name, write, map[string]string{"/data": name}), node)
		if err := t.Apply(ctx, kube.Claim(name, kube.Class, "512Mi", ""), pod); err != nil {
			return err
		}
		if err := t.Running(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// longestPause is how long a writer may pause on this slow machine.
const longestPause = 20 * time.Second

// undisturbed calls do and checks that the writers continued all the time.
func (t *rig) undisturbed(ctx context.Context, do func(context.Context) error) error {
	begin := time.Now().Add(-time.Second)
	if err := do(ctx); err != nil {
		return err
	}
	for i := range t.c.Nodes {
		name := writer(cluster.NodeName(i + 1))
		restarts, err := t.Field(ctx, "pod/"+name, ".status.containerStatuses[0].restartCount")
		if err != nil {
			return err
		}
		if restarts != "0" {
			return fmt.Errorf("the writer in pod %s has failed: it was restarted %s times", name, restarts)
		}
		text, err := t.Shell(ctx, name, "cat /data/log")
		if err != nil {
			return err
		}
		if err := steady(text, begin, time.Now()); err != nil {
			return fmt.Errorf("writer in pod %s: %w", name, err)
		}
	}
	return nil
}

// steady checks the times in a writer's log for pauses between begin and end.
func steady(log string, begin, end time.Time) error {
	last := begin
	for line := range strings.FieldsSeq(log) {
		seconds, err := strconv.ParseInt(line, 10, 64)
		if err != nil {
			return fmt.Errorf("damaged line in the log: %w", err)
		}
		at := time.Unix(seconds, 0)
		if at.Before(begin) {
			continue
		}
		if pause := at.Sub(last); pause > longestPause {
			return fmt.Errorf("no write for %v before %v", pause, at.Format(time.TimeOnly))
		}
		last = at
	}
	if pause := end.Sub(last); pause > longestPause {
		return fmt.Errorf("no write in the last %v", pause)
	}
	return nil
}

// provision checks that claims are served: a pod with a new claim must run.
func (t *rig) provision(ctx context.Context, name string) error {
	return t.serve(ctx, name, kube.Pod(name, kube.Sleep, map[string]string{"/data": name}))
}

// provisionOn is provision on the given node.
func (t *rig) provisionOn(ctx context.Context, name, node string) error {
	return t.serve(ctx, name, onNode(kube.Pod(name, kube.Sleep, map[string]string{"/data": name}), node))
}

func (t *rig) serve(ctx context.Context, name, pod string) error {
	if err := t.Apply(ctx, kube.Claim(name, kube.Class, "320Mi", ""), pod); err != nil {
		return err
	}
	if err := t.Running(ctx, name); err != nil {
		return err
	}
	return t.Delete(ctx, "pod/"+name, "pvc/"+name)
}

// onNode adds a node to the manifest of a pod.
func onNode(pod, node string) string {
	return pod + "  nodeSelector: {kubernetes.io/hostname: " + node + "}\n"
}
