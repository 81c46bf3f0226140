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

// On reports whether a node of that name has the pool, as far as the
// configuration says.
func (c Config) On(node string) bool {
	return len(c.Nodes) == 0 || slices.ContainsFunc(c.Nodes, func(pattern string) bool {
		ok, err := path.Match(pattern, node)
		return ok && err == nil
	})
}

// Absent reports whether a pool that cannot be opened is optional and was never
// on this machine, as far as the disks and the kernel can tell: no disk shows
// anything of its group, each could be read, no device of the kernel is the
// group's, and no device waits for it in vain. What tells anything else is a
// pool that is damaged or gone: who is told of no volumes would take them for
// deleted.
func Absent(ctx context.Context, c Config, o Options) bool {
	c, o = c.withDefaults(), o.withDefaults()
	if !c.Optional || c.kernelHasIt() {
		return false
	}
	// On all disks, also where the configuration names some.
	store, err := lvm2.FindVGReadOnly(ctx, o.LVM, c.VolumeGroup, lvm2.Search{Others: otherDevices, Listed: o.LVM.Listed})
	if err == nil {
		return errors.Join(store.Close()) != nil
	}
	if !errors.Is(err, lvm2.ErrNoTrace) {
		return false
	}
	all, err := c.matches()
	if err != nil || slices.ContainsFunc(all, func(m match) bool { return m.named && !missing(m.why) }) {
		return false // a disk that is named is there, and the group is not
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
		return ours && !strings.HasPrefix(lv, "-") // that would be a longer group's
	})
}
