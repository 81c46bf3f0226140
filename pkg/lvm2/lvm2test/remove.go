// Package lvm2test is for tests of packages that make volume groups.
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

// Unlock lets lvm2's commands change and remove logical volumes of a group that are
// locked and not being moved: those of these names, or all if none is given.
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

// Remove removes a group with all that is in it, as lvm2 does where nothing is locked.
func Remove(name string) error {
	if err := Unlock(name); err != nil {
		return fmt.Errorf("unlocking %s: %w", name, err)
	}
	if out, err := exec.Command("vgremove", "-ff", "-y", name).CombinedOutput(); err != nil {
		return fmt.Errorf("vgremove %s: %w\n%s", name, err, out)
	}
	return nil
}
