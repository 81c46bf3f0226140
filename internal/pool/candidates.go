package pool

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// search returns where to look for the pool's volume group. It excludes all content
// that tenants write to their volumes, because that can imitate the pool's disks.
func (p *Pool) search() lvm2.Search {
	c := p.config
	s := lvm2.Search{IDs: c.VolumeGroupIDs, Others: otherDevices, Listed: p.host.Listed, Named: c.named, Seen: func() string { return c.seen(p.lvDevices()) }}
	if c.chosen() {
		s.Devices = c.devices
	}
	return s
}

// named reports whether the configuration names exactly that device.
func (c Config) named(device string) bool { return slices.Contains(c.Devices, device) }

// seen describes the machine's block devices, except logical volumes, and the
// devices that match the configuration. lvs holds kernel names that are known to be
// logical volumes.
func (c Config) seen(lvs map[string]bool) string {
	var b strings.Builder
	all, _ := filepath.Glob("/sys/class/block/*")
	for _, dir := range all {
		if lvs[filepath.Base(dir)] { // there may be thousands, and reading them takes long
			continue
		}
		if uuid, err := os.ReadFile(filepath.Join(dir, "dm", "uuid")); err == nil && strings.HasPrefix(string(uuid), "LVM-") {
			continue
		}
		b.WriteString(filepath.Base(dir))
		for _, name := range []string{"size", "diskseq"} {
			text, _ := os.ReadFile(filepath.Join(dir, name)) // partitions and old kernels have no diskseq
			b.WriteString(" " + strings.TrimSpace(string(text)))
		}
		b.WriteByte('\n')
	}
	matches, _ := c.matches() // the search reports the error
	for _, m := range matches {
		fmt.Fprintln(&b, m.path, m.dev)
	}
	return b.String()
}

// chosen reports whether the configuration says which devices are the pool's.
func (c Config) chosen() bool { return len(c.Devices) > 0 || c.File != "" }

// onPool reports whether a device lies on a logical volume of one of the node's
// pools, directly or through other devices.
func (c Config) onPool(path string) bool {
	stack, err := lvm2.Stack(path)
	return err == nil && slices.ContainsFunc(stack, func(l lvm2.Layer) bool {
		return l.Group != "" && (l.Group == c.VolumeGroup || slices.Contains(c.Groups, l.Group))
	})
}

// otherDevices returns the machine's block devices that may be physical volumes
// although the configuration does not name them. It excludes devices on logical
// volumes, on suspended devices, whose readers would hang, and on devices that
// cannot be seen.
func otherDevices() ([]string, error) {
	all, err := blockDevices(nil)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(path string) bool {
		stack, err := lvm2.Stack(path)
		return err != nil || slices.ContainsFunc(stack, func(l lvm2.Layer) bool { return l.Group != "" || l.Suspended || l.Opaque })
	}), nil
}

// blockDevices returns the paths of the machine's block devices whose size is not 0. It
// omits the devices with the kernel names in lvs.
func blockDevices(lvs map[string]bool) ([]string, error) {
	entries, err := os.ReadDir("/sys/class/block")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if lvs[e.Name()] { // there may be thousands, and reading them takes long
			continue
		}
		if n, err := os.ReadFile(filepath.Join("/sys/class/block", e.Name(), "size")); err != nil || strings.TrimSpace(string(n)) == "0" {
			continue
		}
		path := filepath.Join("/dev", strings.ReplaceAll(e.Name(), "!", "/"))
		if _, err := os.Stat(path); err == nil {
			out = append(out, path)
		}
	}
	return out, nil
}
