package kube

import (
	"context"
	"fmt"
	"strings"
)

// Patience is the flag with kubectl's time limit.
const Patience = "--timeout=4m"

// Namespace is kubectl in one namespace, as a user of the cluster uses it.
type Namespace struct {
	*Kubectl
	Name string
}

// Create makes the namespace unless it exists.
func (n *Namespace) Create(ctx context.Context) error {
	return n.Kubectl.Apply(ctx, "{apiVersion: v1, kind: Namespace, metadata: {name: "+n.Name+"}}")
}

// Run runs kubectl in the namespace.
func (n *Namespace) Run(ctx context.Context, args ...string) (string, error) {
	return n.Kubectl.Run(ctx, append([]string{"-n", n.Name}, args...)...)
}

// Apply applies manifests.
func (n *Namespace) Apply(ctx context.Context, manifests ...string) error {
	return n.Kubectl.Apply(ctx, strings.Join(manifests, "\n---\n"), "-n", n.Name)
}

// Wait waits until a field of an object has a value, for example pod/x,
// .status.phase, Running. If the wait fails, the error has the object's events.
func (n *Namespace) Wait(ctx context.Context, object, field, value string) error {
	_, err := n.Run(ctx, "wait", object, "--for=jsonpath={"+field+"}="+value, Patience)
	if err == nil {
		return nil
	}
	_, name, _ := strings.Cut(object, "/")
	events, _ := n.Run(ctx, "get", "events", "--field-selector=involvedObject.name="+name,
		"-o", `jsonpath={range .items[*]}{.reason}: {.message}{"\n"}{end}`)
	return fmt.Errorf("%w\nevents of %s:\n%s", err, object, events)
}

// Running waits until the pods run.
func (n *Namespace) Running(ctx context.Context, pods ...string) error {
	for _, pod := range pods {
		if err := n.Wait(ctx, "pod/"+pod, ".status.phase", "Running"); err != nil {
			return err
		}
	}
	return nil
}

// Shell runs a shell command in a pod and returns what it prints.
func (n *Namespace) Shell(ctx context.Context, pod, script string) (string, error) {
	out, err := n.Run(ctx, "exec", pod, "--", "sh", "-ec", script)
	return strings.TrimSpace(out), err
}

// Expect runs a shell command in a pod and compares its output with want.
func (n *Namespace) Expect(ctx context.Context, pod, script, want string) error {
	got, err := n.Shell(ctx, pod, script)
	if err == nil && got != want {
		err = fmt.Errorf("%s in pod %s prints %q, want %q", script, pod, got, want)
	}
	return err
}

// Field returns a field of an object.
func (n *Namespace) Field(ctx context.Context, object, field string) (string, error) {
	return n.Run(ctx, "get", object, "-o", "jsonpath={"+field+"}")
}

// Delete deletes objects and waits until they are gone.
func (n *Namespace) Delete(ctx context.Context, objects ...string) error {
	_, err := n.Run(ctx, append([]string{"delete", Patience}, objects...)...)
	return err
}

// Clear deletes the pods, claims and snapshots of the namespace.
func (n *Namespace) Clear(ctx context.Context) error {
	_, err := n.Run(ctx, "delete", "pods,persistentvolumeclaims,volumesnapshots", "--all", "--grace-period=1", Patience)
	return err
}
