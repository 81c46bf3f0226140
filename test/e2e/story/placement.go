package story

import (
	"context"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/kube"
)

// elsewhere restores from a snapshot while its node takes no pods. The
// scheduler chooses another node, but the volume is made on the snapshot's
// node, and so the pod moves there.
func (t *teller) elsewhere() []step {
	var home string
	return []step{
		{"source with a snapshot", func(ctx context.Context) error { return t.source(ctx, &home) }},
		{"restore while the snapshot's node takes no pods: claim Bound", func(ctx context.Context) error {
			if _, err := t.Kubectl.Run(ctx, "cordon", home); err != nil {
				return err
			}
			err := t.Apply(ctx, kube.Claim("moved", kube.Class, "512Mi", "cut"), kube.Pod("moved", kube.Sleep, map[string]string{"/data": "moved"}))
			if err != nil {
				return err
			}
			return t.Wait(ctx, "pvc/moved", ".status.phase", "Bound")
		}},
		{"the scheduler had decided for another node", func(ctx context.Context) error {
			chosen, err := t.Run(ctx, "get", "pvc", "moved", "-o", `jsonpath={.metadata.annotations.volume\.kubernetes\.io/selected-node}`)
			if err == nil && (chosen == "" || chosen == home) {
				err = fmt.Errorf("the scheduler had decided for %q, and the snapshot is on %s", chosen, home)
			}
			return err
		}},
		{"snapshot's node takes pods again: pod Running there", func(ctx context.Context) error {
			if _, err := t.Kubectl.Run(ctx, "uncordon", home); err != nil {
				return err
			}
			if err := t.Running(ctx, "moved"); err != nil {
				return err
			}
			return t.isOn(ctx, "moved", home)
		}},
		{"the moved pod reads the snapshot's bytes", func(ctx context.Context) error { return t.Expect(ctx, "moved", "cat /data/mark", "before") }},
		{"clean up", func(ctx context.Context) error { return t.Clear(ctx) }},
	}
}

// mixed runs a pod with a restored and a new volume. The class of the restored
// volume binds before the pod is scheduled, so that the new volume is made on
// the same node.
func (t *teller) mixed() []step {
	var home string
	return []step{
		{"source with a snapshot", func(ctx context.Context) error { return t.source(ctx, &home) }},
		{"pod with a restored and a new claim: Running on the snapshot's node", func(ctx context.Context) error {
			err := t.Apply(ctx, kube.Claim("old", kube.RestoreClass, "512Mi", "cut"), kube.Claim("new", kube.Class, "512Mi", ""),
				kube.Pod("both", kube.Sleep, map[string]string{"/data": "old", "/new": "new"}))
			if err != nil {
				return err
			}
			if err := t.Running(ctx, "both"); err != nil {
				return err
			}
			return t.isOn(ctx, "both", home)
		}},
		{"the pod copies from the restored to the new volume", func(ctx context.Context) error {
			return t.Expect(ctx, "both", "cp /data/mark /new/mark && sync && cat /new/mark", "before")
		}},
		{"clean up", func(ctx context.Context) error { return t.Clear(ctx) }},
	}
}

// source makes a volume with a snapshot, named cut, and sets home to their
// node.
func (t *teller) source(ctx context.Context, home *string) error {
	err := t.Apply(ctx, kube.Claim("source", kube.Class, "512Mi", ""), kube.Pod("source", kube.Sleep, map[string]string{"/data": "source"}))
	if err != nil {
		return err
	}
	if err := t.Running(ctx, "source"); err != nil {
		return err
	}
	if *home, err = t.Field(ctx, "pod/source", ".spec.nodeName"); err != nil {
		return err
	}
	if _, err := t.Shell(ctx, "source", "echo before > /data/mark && sync"); err != nil {
		return err
	}
	if err := t.snapshot(ctx, "cut", "source"); err != nil {
		return err
	}
	_, err = t.Shell(ctx, "source", "echo after > /data/mark && sync")
	return err
}

func (t *teller) isOn(ctx context.Context, pod, node string) error {
	on, err := t.Field(ctx, "pod/"+pod, ".spec.nodeName")
	if err == nil && on != node {
		err = fmt.Errorf("pod %s is on %s instead of %s", pod, on, node)
	}
	return err
}
