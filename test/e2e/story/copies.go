package story

import (
	"context"
	"fmt"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/install"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/kube"
)

// scratchClass is a class of volumes that begin with a snapshot's content and
// are deleted with their pod.
const scratchClass = `apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: story-scratch}
provisioner: dmsnap.csi-dmsnap.github.io
parameters: {transient: "true"}
volumeBindingMode: Immediate
`

// uncopied uses a snapshot without copying it: read-only, as scratch space of a
// pod, and by a rollback.
func (t *teller) uncopied() []step {
	var home string
	reads := func(pod, want string) func(context.Context) error {
		return func(ctx context.Context) error { return t.Expect(ctx, pod, "cat /data/mark", want) }
	}
	return []step{
		{"source with a snapshot", func(ctx context.Context) error { return t.source(ctx, &home) }},
		{"two ReadOnlyMany claims from the snapshot, and pods: Running", func(ctx context.Context) error {
			for _, name := range []string{"reader", "reader-too"} {
				claim := strings.Replace(kube.Claim(name, kube.RestoreClass, "512Mi", "cut"), "ReadWriteOnce", "ReadOnlyMany", 1)
				if err := t.Apply(ctx, claim, kube.Pod(name, kube.Sleep, map[string]string{"/data": name})); err != nil {
					return err
				}
			}
			return t.Running(ctx, "reader", "reader-too")
		}},
		{"the first reader reads the snapshot's bytes", reads("reader", "before")},
		{"the second reader reads the snapshot's bytes", reads("reader-too", "before")},
		{"a reader cannot write", func(ctx context.Context) error {
			return t.Expect(ctx, "reader", "if touch /data/new 2>/dev/null; then echo written; else echo refused; fi", "refused")
		}},
		{"a reader takes no extents", func(ctx context.Context) error { return t.takesNothing(ctx, home, "reader") }},
		{"pod with a transient ephemeral volume from the snapshot: Running", func(ctx context.Context) error {
			if err := t.Kubectl.Apply(ctx, scratchClass); err != nil {
				return err
			}
			if err := t.Apply(ctx, kube.Ephemeral("scratch", kube.Sleep, "story-scratch", "512Mi", "cut")); err != nil {
				return err
			}
			return t.Running(ctx, "scratch")
		}},
		{"the scratch pod reads the snapshot's bytes", reads("scratch", "before")},
		{"the scratch pod writes other bytes", func(ctx context.Context) error {
			return t.Expect(ctx, "scratch", "echo own > /data/mark && sync && cat /data/mark", "own")
		}},
		{"the readers do not see these bytes", reads("reader", "before")},
		{"readers and scratch pod deleted", func(ctx context.Context) error {
			err := t.Delete(ctx, "pod/scratch", "pod/reader", "pod/reader-too", "pvc/reader", "pvc/reader-too")
			if err == nil {
				_, err = t.Kubectl.Run(ctx, "delete", "storageclass/story-scratch")
			}
			return err
		}},
		{"source's pod deleted, its volume rolled back, pod applied: Running", func(ctx context.Context) error { return t.rollBack(ctx, home) }},
		{"source reads the snapshot's bytes again", reads("source", "before")},
		{"clean up", func(ctx context.Context) error { return t.Clear(ctx) }},
	}
}

// takesNothing checks that the logical volume of a claim has no extents on its
// node.
func (t *teller) takesNothing(ctx context.Context, node, claim string) error {
	volume, err := t.Field(ctx, "pvc/"+claim, ".spec.volumeName")
	if err != nil {
		return err
	}
	devices, err := t.c.Output(ctx, node, "lvs", "--noheadings", "-o", "seg_pe_ranges", pool+"/"+volume)
	if err == nil && strings.TrimSpace(devices) != "" {
		err = fmt.Errorf("logical volume %s has the extents %s", volume, devices)
	}
	return err
}

// rollBack rolls the volume source back to its snapshot, as the guide says.
func (t *teller) rollBack(ctx context.Context, node string) error {
	if err := t.Delete(ctx, "pod/source"); err != nil {
		return err
	}
	volume, err := t.Field(ctx, "pvc/source", ".spec.volumeName")
	if err != nil {
		return err
	}
	id, err := t.Field(ctx, "pv/"+volume, ".spec.csi.volumeHandle")
	if err != nil {
		return err
	}
	content, err := t.Field(ctx, "volumesnapshot/cut", ".status.boundVolumeSnapshotContentName")
	if err != nil {
		return err
	}
	snapshot, err := t.Field(ctx, "volumesnapshotcontent/"+content, ".status.snapshotHandle")
	if err != nil {
		return err
	}
	// The kubelet unmounts the volume some time after the pod is gone. Until then the rollback is refused.
	for {
		_, err = install.Exec(ctx, t.Kubectl, node, "csi-dmsnap", "rollback", id, snapshot, "--yes")
		if err == nil || !strings.Contains(err.Error(), "use") {
			break
		}
		if ended := second(ctx); ended != nil {
			return fmt.Errorf("%w: %w", ended, err)
		}
	}
	if err != nil {
		return err
	}
	if err := t.Apply(ctx, kube.Pod("source", kube.Sleep, map[string]string{"/data": "source"})); err != nil {
		return err
	}
	return t.Running(ctx, "source")
}
