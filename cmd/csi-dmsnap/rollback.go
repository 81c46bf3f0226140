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

// rollbackCommand returns the command that rolls a volume back in place.
func rollbackCommand() *cobra.Command {
	var o operator
	var dryRun, yes bool
	c := &cobra.Command{
		Use: "rollback VOLUME SNAPSHOT", Short: "Roll a volume back to one of its snapshots, in place", Args: cobra.ExactArgs(2),
		Long: `Roll a volume back to the content that it had when one of its snapshots was taken.
The rollback is in place: the volume's names, id and size stay, so claims and pods
need no change. No pod may use the volume during the rollback. It can be used again
immediately; the driver copies the content in the background.

All snapshots stay, the newer ones too, so the volume can be rolled forward again.
Everything that was written after the newest snapshot is lost: take another snapshot
first if you may need it. So the command changes nothing without --yes: it prints what
it would do, or why it cannot. It records who ran it: csi-dmsnap tree shows the record,
and the driver logs it and makes an Event.

VOLUME and SNAPSHOT are names, logical volumes or CSI ids. The id of a PersistentVolume
is spec.csi.volumeHandle, the id of a VolumeSnapshotContent status.snapshotHandle. The
command refuses an id of another node or pool.

Run the command on the volume's node, in the driver's pod: only there it sees the
mounts, which tell it whether the volume is in use. The driver may be running.`,
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
	c.Flags().StringVar(&o.pool, "pool", "", "look for the volume only in this pool")
	c.Flags().BoolVar(&yes, "yes", false, "roll the volume back")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only print what would be done, or why it cannot be done; the default without --yes")
	c.MarkFlagsMutuallyExclusive("yes", "dry-run")
	return c
}

// rollback rolls a volume back to a snapshot. volume and snapshot are the arguments
// of the command.
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
			return r, err // this pool may have the volume
		}
		found = append(found, i)
	}
	v, err := of.volume(found)
	if err != nil {
		return r, err
	}
	if to.pool != "" && to.pool != v.Pool {
		return r, fmt.Errorf("%s is in pool %s, but the volume is in pool %s; nothing was changed", snapshot, to.pool, v.Pool)
	}
	s, err := to.snapshot(found, v.Pool)
	if err != nil {
		return r, err
	}
	c := configs[slices.IndexFunc(configs, func(c pool.Config) bool { return c.Name == v.Pool })]
	done, err := pool.Rollback(ctx, c, by(), pool.RollbackSpec{Volume: v.LV, Snapshot: s.LV, DryRun: dryRun})
	return newRollback(v.Pool, done, dryRun), err
}

// rollback is the command's result.
type rollback struct {
	Pool       string     `json:"pool"`
	Volume     string     `json:"volume"` // the CSI name
	LV         string     `json:"lv"`
	Size       size.Bytes `json:"size"`
	Snapshot   string     `json:"snapshot"` // the CSI name
	SnapshotLV string     `json:"snapshotLV"`
	Created    time.Time  `json:"created"`          // when the snapshot was taken
	Newest     string     `json:"newest,omitempty"` // the newest snapshot of the former content; later writes are lost
	NewestAt   time.Time  `json:"newestAt,omitzero"`
	Former     string     `json:"former,omitempty"` // the logical volume that keeps the blocks of the former content
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
	rolled, lost := "was rolled back", "is lost"
	if r.DryRun {
		rolled, lost = "would be rolled back", "would be lost"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "volume %s (%s/%s, %v) %s to snapshot %s, taken %s\n",
		r.Volume, r.Pool, r.LV, r.Size, rolled, r.Snapshot, r.Created.Format(time.RFC3339))
	if r.Newest == "" {
		fmt.Fprintf(&b, "everything written after the last rollback %s, because no snapshot was taken since\n", lost)
	} else {
		fmt.Fprintf(&b, "everything written after the newest snapshot %s, taken %s, %s\n", r.Newest, r.NewestAt.Format(time.RFC3339), lost)
	}
	if r.Former != "" {
		fmt.Fprintf(&b, "logical volume %s keeps the former blocks for the snapshots\n", r.Former)
	}
	if r.DryRun {
		b.WriteString("\nNothing was changed. Use --yes to roll the volume back.\n")
	} else {
		b.WriteString("the volume can be used; the driver copies it in the background (csi-dmsnap volumes shows how far)\n")
	}
	return b.String()
}
