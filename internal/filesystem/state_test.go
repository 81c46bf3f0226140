package filesystem

import (
	"testing"

	"github.com/moby/sys/mountinfo"
)

// Only a writable mount that the kernel has made read-only is a fault.
func TestStateOf_readOnly(t *testing.T) {
	for _, c := range []struct {
		mount, super string
		want         bool
	}{
		{"rw,relatime", "rw", false}, {"ro,relatime", "ro", false}, {"ro", "rw", false},
		{"rw,relatime", "ro,space_cache=v2", true}, {"rw", "rw,emergency_ro", true}, {"rw", "rw,errors=remount-ro", false},
	} {
		s, err := StateOf(&mountinfo.Info{FSType: Btrfs, Options: c.mount, VFSOptions: c.super})
		if err != nil || s.ReadOnly != c.want {
			t.Errorf("%s - %s: %+v, %v", c.mount, c.super, s, err)
		}
	}
}
