package story

import (
	"context"
	"fmt"
	"strconv"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/kube"
)

// Shell commands that write a file of random bytes, and print a digest of its
// content.
const (
	scribble = "dd if=/dev/urandom of=/data/file bs=1M count=8 2>/dev/null && sync"
	digest   = "sha256sum < /data/file"
)

// life is the main story: snapshot, restore, expand, and deletion in an unusual
// order.
func (t *teller) life() []step {
	var before, after string
	write := func(digestOf *string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := t.Shell(ctx, "app", scribble)
			if err == nil {
				*digestOf, err = t.Shell(ctx, "app", digest)
			}
			return err
		}
	}
	reads := func(pod string, want *string) func(context.Context) error {
		return func(ctx context.Context) error { return t.Expect(ctx, pod, digest, *want) }
	}
	return []step{
		{"claim and pod applied: pod Running", func(ctx context.Context) error {
			if err := t.Apply(ctx, kube.Claim("data", kube.Class, "512Mi", ""), kube.Pod("app", kube.Sleep, map[string]string{"/data": "data"})); err != nil {
				return err
			}
			return t.Running(ctx, "app")
		}},
		{"pod writes", write(&before)},
		{"VolumeSnapshot applied: readyToUse", func(ctx context.Context) error { return t.snapshot(ctx, "first", "data") }},
		{"pod overwrites", write(&after)},
		{"claim from the snapshot and pod applied: pod Running", func(ctx context.Context) error {
			return t.restore(ctx, "restored", kube.RestoreClass, "512Mi", "first")
		}},
		{"restored pod reads the old bytes", reads("restored", &before)},
		{"source has the new bytes", reads("app", &after)},
		{"expand while the pod uses it", t.expand},
		{"second VolumeSnapshot", func(ctx context.Context) error { return t.snapshot(ctx, "second", "data") }},
		{"source's pod and claim deleted", func(ctx context.Context) error { return t.Delete(ctx, "pod/app", "pvc/data") }},
		{"restore from a deleted volume's second snapshot", func(ctx context.Context) error {
			return t.restore(ctx, "late", kube.RestoreClass, "1Gi", "second")
		}},
		{"it reads the bytes from the time of the second snapshot", reads("late", &after)},
		{"first snapshot deleted, then the restored volumes, then the second snapshot", func(ctx context.Context) error {
			for _, objects := range [][]string{
				{"volumesnapshot/first"},
				{"pod/restored", "pod/late", "pvc/late", "pvc/restored"},
				{"volumesnapshot/second"},
			} {
				if err := t.Delete(ctx, objects...); err != nil {
					return err
				}
			}
			return nil
		}},
	}
}

// snapshot makes a VolumeSnapshot of a claim and waits until it is ready to
// use.
func (t *teller) snapshot(ctx context.Context, name, claim string) error {
	if err := t.Apply(ctx, kube.Snapshot(name, claim)); err != nil {
		return err
	}
	return t.Wait(ctx, "volumesnapshot/"+name, ".status.readyToUse", "true")
}

// restore makes a claim from a snapshot, and a pod that uses the claim. Both
// have the same name.
func (t *teller) restore(ctx context.Context, name, class, size, from string) error {
	err := t.Apply(ctx, kube.Claim(name, class, size, from), kube.Pod(name, kube.Sleep, map[string]string{"/data": name}))
	if err != nil {
		return err
	}
	return t.Running(ctx, name)
}

// expand makes the claim larger, and checks that the pod sees the additional
// space.
func (t *teller) expand(ctx context.Context) error {
	const space = "df -mP /data | awk 'NR==2 {print $2}'"
	smaller, err := t.mebibytes(ctx, "app", space)
	if err != nil {
		return err
	}
	_, err = t.Run(ctx, "patch", "pvc", "data", "-p", `{"spec": {"resources": {"requests": {"storage": "1Gi"}}}}`)
	if err != nil {
		return err
	}
	if err := t.Wait(ctx, "pvc/data", ".status.capacity.storage", "1Gi"); err != nil {
		return err
	}
	larger, err := t.mebibytes(ctx, "app", space)
	if err == nil && larger < smaller+400 {
		err = fmt.Errorf("the file system has %d MiB after the expansion by 512 MiB, and had %d MiB", larger, smaller)
	}
	return err
}

func (t *teller) mebibytes(ctx context.Context, pod, script string) (int, error) {
	out, err := t.Shell(ctx, pod, script)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(out)
}
