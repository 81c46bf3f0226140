package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// rollbackCommand makes volumes what they were.
func rollbackCommand() *cobra.Command {
	var o operator
	var dryRun, yes bool
	c := &cobra.Command{
		Use: "rollback VOLUME SNAPSHOT", Short: "Make a volume what it was at one of its snapshots", Args: cobra.ExactArgs(2),
		Long: `Make a volume what it was when one of its snapshots was taken, in place: its
names, id and size stay, so claims and pods need no change. No pod may use it
meanwhile. It can be used again at once, the content is copied in the background.

All snapshots stay, the newer ones too, until they are deleted: the volume can be
rolled forward again to one of them. What was written since the newest snapshot is
lost; take another one first if that may be needed. So it wants --yes: without that it
says what it would do, or why it cannot, and changes nothing. It records who did it:
csi-dmsnap tree shows that, and the driver logs it and makes an Event of it.

The volume and the snapshot are given by name, by logical volume or by CSI id (of
a PersistentVolume: spec.csi.volumeHandle, of a VolumeSnapshotContent:
status.snapshotHandle). An id of another node or pool is refused. Run it on the volume's node, in the driver's pod: it can tell who uses
the volume only by the mounts that it sees. The driver may run or not.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), lookLimit)
			defer cancel()
			r, err := o.rollback(ctx, args[0], args[1], dryRun || !yes)
			if err != nil {
				return err
			}
			return printAs(cmd.OutOrStdout(), o.output, r.text(), r)
		},
	}
	o.commonFlags(c)
	c.Flags().StringVar(&o.pool, "pool", "", "the volume is in this pool")
	c.Flags().BoolVar(&yes, "yes", false, "do it")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be done, or why it cannot be, as without --yes")
	c.MarkFlagsMutuallyExclusive("yes", "dry-run")
	return c
}

// rollback makes a volume what it was at a snapshot. Both are given as people name them.
func (o *operator) rollback(ctx context.Context, volume, snapshot string, dryRun bool) (r rollback, err error) {
	of, err := o.resolve(ctx, volume, o.pool)
	if err != nil {
		return r, err
	}
	if of.pool != "" {
		o.pool = of.pool
	}
	to, err := o.resolve(ctx, snapshot, o.pool)
	if err != nil {
		return r, err
	}
	configs, err := o.pools(ctx)
	if err != nil {
		return r, err
	}
	var found []*pool.Inspection
	for _, c := range configs {
		i, err := pool.Inspect(ctx, c, pool.Options{})
		if err != nil {
			return r, err // it may have the volume
		}
		found = append(found, i)
	}
	v, err := of.volume(found)
	if err != nil {
		return r, err
	}
	if to.pool != "" && to.pool != v.Pool {
		return r, fmt.Errorf("%s is in pool %s, the volume is in pool %s; nothing was changed", snapshot, to.pool, v.Pool)
	}
	s, err := to.snapshot(found, v.Pool)
	if err != nil {
		return r, err
	}
	c := configs[slices.IndexFunc(configs, func(c pool.Config) bool { return c.Name == v.Pool })]
	done, err := pool.Rollback(ctx, c, by(), pool.RollbackSpec{Volume: v.LV, Snapshot: s.LV, DryRun: dryRun})
	return newRollback(v.Pool, done, dryRun), err
}

// rollback is what the command says. Lengths are in bytes.
type rollback struct {
	Pool       string     `json:"pool"`
	Volume     string     `json:"volume"` // the CSI name
	LV         string     `json:"lv"`
	Size       size.Bytes `json:"size"`
	Snapshot   string     `json:"snapshot"` // the CSI name
	SnapshotLV string     `json:"snapshotLV"`
	Created    time.Time  `json:"created"`          // when the snapshot was taken
	Newest     string     `json:"newest,omitempty"` // the newest snapshot of what the volume was: what came after it is lost
	NewestAt   time.Time  `json:"newestAt,omitzero"`
	Former     string     `json:"former,omitempty"` // the logical volume that keeps the blocks of what it was
	DryRun     bool       `json:"dryRun,omitempty"`
}

func newRollback(in string, r pool.RolledBack, dryRun bool) rollback {
	return rollback{
		Pool: in, Volume: r.Volume.Name, LV: r.Volume.LV, Size: r.Volume.Size,
		Snapshot: r.Snapshot.Name, SnapshotLV: r.Snapshot.LV, Created: r.Snapshot.Created.UTC(),
		Newest: r.Newest.Name, NewestAt: r.Newest.Created.UTC(), Former: r.Former, DryRun: dryRun,
	}
}

func (r rollback) text() string {
	is, lost := "is", "is lost"
	if r.DryRun {
		is, lost = "would be", "would be lost"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "volume %s (%s/%s, %v) %s what it was at snapshot %s, taken %s\n",
		r.Volume, r.Pool, r.LV, r.Size, is, r.Snapshot, r.Created.Format(time.RFC3339))
	if r.Newest == "" {
		fmt.Fprintf(&b, "what was written to it is in no snapshot and %s\n", lost)
	} else {
		fmt.Fprintf(&b, "what was written to it after its newest snapshot %s, taken %s, %s\n", r.Newest, r.NewestAt.Format(time.RFC3339), lost)
	}
	if r.Former != "" {
		fmt.Fprintf(&b, "%s keeps the blocks of what it was, for its snapshots\n", r.Former)
	}
	if r.DryRun {
		b.WriteString("\nNothing was changed. Give --yes to do it.\n")
	} else {
		b.WriteString("it can be used; the driver copies it in the background, see: csi-dmsnap volumes\n")
	}
	return b.String()
}
