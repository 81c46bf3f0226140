package story

import (
	"context"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/cluster"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/install"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/kube"
)

// pool is the name of the pool in the chart's values, and of its volume group.
const pool = "fast"

// static uses a logical volume that lvm2 made. Once it is imported, it is a
// volume like any other.
func (t *teller) static() []step {
	node := cluster.NodeName(1)
	use := func(ctx context.Context, name, reclaim string) error {
		if err := t.Apply(ctx, kube.Static(name, "v1:"+node+":"+pool+":byhand", node, reclaim), kube.Pod(name, kube.Sleep, map[string]string{"/data": name})); err != nil {
			return err
		}
		return t.Running(ctx, name)
	}
	return []step{
		{"lvcreate and mkfs on " + node, func(ctx context.Context) error {
			_, err := t.c.Output(ctx, node, "sh", "-ec", `lvcreate -qq -y -L 320m -n byhand `+pool+`
				mkdir -p /run/byhand; echo by hand > /run/byhand/mark
				mkfs.ext4 -q -d /run/byhand /dev/`+pool+`/byhand`)
			return err
		}},
		{"csi-dmsnap import --static", func(ctx context.Context) error {
			_, err := install.Exec(ctx, t.Kubectl, node, "csi-dmsnap", "import", "--static", pool, "byhand")
			return err
		}},
		{"PersistentVolume, claim and pod applied: pod Running", func(ctx context.Context) error { return use(ctx, "by-hand", "Retain") }},
		{"pod reads the logical volume's content", func(ctx context.Context) error { return t.Expect(ctx, "by-hand", "cat /data/mark", "by hand") }},
		{"csi-dmsnap orphans finds none", t.noOrphans},
		{"all three deleted: the logical volume stays", func(ctx context.Context) error {
			if err := t.Delete(ctx, "pod/by-hand", "pvc/by-hand", "pv/by-hand"); err != nil {
				return err
			}
			_, err := t.c.Output(ctx, node, "lvs", pool+"/byhand")
			return err
		}},
		{"csi-dmsnap import", func(ctx context.Context) error {
			_, err := install.Exec(ctx, t.Kubectl, node, "csi-dmsnap", "import", pool, "byhand")
			return err
		}},
		{"used again, with reclaim policy Delete: pod Running", func(ctx context.Context) error { return use(ctx, "imported", "Delete") }},
		{"VolumeSnapshot: readyToUse", func(ctx context.Context) error { return t.snapshot(ctx, "of-imported", "imported") }},
		{"clean up", func(ctx context.Context) error { return t.Clear(ctx) }},
	}
}
