// Package lvm2test has helpers for tests that run lvm2's commands on volume groups.
// They need root and the commands pvs and vgremove.
package lvm2test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// Unlock removes the status LOCKED of logical volumes of the volume group with the
// name, so that lvm2's commands change and remove them. It unlocks the logical
// volumes named in only, or all if only is empty. It does not unlock logical volumes
// that pvmove works on.
func Unlock(name string, only ...string) (err error) {
	ctx := context.Background()
	out, err := exec.Command("pvs", "--noheadings", "-o", "pv_name", "-S", "vg_name="+name).Output()
	if err != nil {
		return fmt.Errorf("pvs: %w", err)
	}
	host := lvm2.Host{}
	store, err := lvm2.OpenVG(ctx, host, name, strings.Fields(string(out)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	lock, err := host.LockVG(ctx, name, lvm2.Exclusive)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	read, err := store.Read(ctx)
	if err != nil {
		return err
	}
	vg := read.Clone()
	for _, lv := range read.LVs {
		if !slices.Contains(lv.Status, lvm2.StatusLocked) || len(only) > 0 && !slices.Contains(only, lv.Name) {
			continue
		}
		c := lv.Clone()
		c.Status = slices.DeleteFunc(c.Status, func(s string) bool { return s == lvm2.StatusLocked })
		if err := vg.Replace(c); err != nil && !errors.Is(err, lvm2.ErrLocked) {
			return err
		}
	}
	return store.Commit(ctx, vg)
}

// Remove removes a volume group with all its logical volumes, also locked ones, with
// lvm2's vgremove.
func Remove(name string) error {
	if err := Unlock(name); err != nil {
		return fmt.Errorf("unlock %s: %w", name, err)
	}
	if out, err := exec.Command("vgremove", "-ff", "-y", name).CombinedOutput(); err != nil {
		return fmt.Errorf("vgremove %s: %w\n%s", name, err, out)
	}
	return nil
}
