package pool

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// On reports whether a node of that name has the pool according to the
// configuration.
func (c Config) On(node string) bool {
	return len(c.Nodes) == 0 || slices.ContainsFunc(c.Nodes, func(pattern string) bool {
		ok, err := path.Match(pattern, node)
		return ok && err == nil
	})
}

// Absent reports whether a pool that cannot be opened is optional and was never on
// this machine, as far as the disks and the kernel can tell. No disk may show a
// trace of its group, each disk must be readable, the kernel must have no device of
// the group, and no configured device may be fit for the group or prevent its
// creation. Otherwise the pool counts as damaged or missing: a caller that got an
// empty list would take its volumes for deleted.
func Absent(ctx context.Context, c Config, o Options) bool {
	c, o = c.withDefaults(), o.withDefaults()
	if !c.Optional || c.kernelHasIt() {
		return false
	}
	// Search all disks, even if the configuration names some.
	store, err := lvm2.FindVGReadOnly(ctx, o.LVM, c.VolumeGroup, lvm2.Search{Others: otherDevices, Listed: o.LVM.Listed})
	if err == nil {
		return errors.Join(store.Close()) != nil
	}
	if !errors.Is(err, lvm2.ErrNoTrace) {
		return false
	}
	all, err := c.matches()
	if err != nil || slices.ContainsFunc(all, func(m match) bool { return m.named && !doesNotExist(m.why) }) {
		return false // a named disk is there, but the group is not
	}
	if !c.Create {
		return true
	}
	fit, left, err := c.choose(nil)
	return err == nil && len(fit) == 0 && !slices.ContainsFunc(left, func(l LeftOut) bool { return l.hinders })
}

// kernelHasIt reports whether the kernel has, or may have, devices of the group.
func (c Config) kernelHasIt() bool {
	control, err := dm.Open()
	if err != nil {
		return true
	}
	defer control.Close()
	all, err := control.List()
	prefix := strings.ReplaceAll(c.VolumeGroup, "-", "--") + "-"
	return err != nil || slices.ContainsFunc(all, func(e dm.ListEntry) bool {
		lv, ours := strings.CutPrefix(e.Name, prefix)
		return ours && !strings.HasPrefix(lv, "-") // that is a device of a group with a longer name
	})
}
