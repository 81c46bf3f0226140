package story

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/cluster"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/install"
)

// wiped is how long the space of deleted volumes may take to be free again.
const wiped = 3 * time.Minute

// nothingLeft checks that everything is gone from the API, the pools and the
// kernels.
func (t *teller) nothingLeft() []step {
	steps := []step{{"no PersistentVolume and no VolumeSnapshotContent", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, wiped)
		defer cancel()
		none := func(s string) bool { return s == "" }
		_, err := t.Kubectl.Until(ctx, none, "get", "persistentvolumes,volumesnapshotcontents", "-o", "name")
		return err
	}}}
	for i := range t.c.Nodes {
		name := cluster.NodeName(i + 1)
		steps = append(steps,
			step{"no logical volume and no device on " + name, func(ctx context.Context) error { return t.empty(ctx, name) }},
			step{"csi-dmsnap check and vgck on " + name, func(ctx context.Context) error {
				_, err := install.Exec(ctx, t.Kubectl, name, "csi-dmsnap", "check")
				if err == nil {
					_, err = t.c.Output(ctx, name, "vgck")
				}
				return err
			}})
	}
	return append(steps, step{"csi-dmsnap orphans finds none", t.noOrphans})
}

// noOrphans checks that Kubernetes and the disks know the same volumes.
func (t *teller) noOrphans(ctx context.Context) error {
	out, err := install.Controller(ctx, t.Kubectl, "csi-dmsnap", "orphans")
	if err == nil && strings.TrimSpace(out) != "No orphans." {
		err = fmt.Errorf("csi-dmsnap orphans: %s", out)
	}
	return err
}

// empty waits until a node's pool has no logical volumes, and its kernel no
// device-mapper devices.
func (t *teller) empty(ctx context.Context, node string) error {
	ctx, cancel := context.WithTimeout(ctx, wiped)
	defer cancel()
	for {
		volumes, err := t.c.Output(ctx, node, "lvs", "--noheadings", "-a", "-o", "vg_name,lv_name,lv_tags")
		if err != nil {
			return err
		}
		devices, err := t.c.Output(ctx, node, "dmsetup", "ls")
		if err != nil {
			return err
		}
		if strings.TrimSpace(volumes) == "" && strings.Contains(devices, "No devices found") {
			return nil
		}
		if err := second(ctx); err != nil {
			return errors.Join(fmt.Errorf("left on %s: logical volumes\n%s\ndevices\n%s", node, volumes, devices), err)
		}
	}
}
