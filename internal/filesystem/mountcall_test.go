package filesystem

import (
	"testing"

	"golang.org/x/sys/unix"
)

// Options become flags and data as mount(8) passes them; options that belong to
// mount(8), or that cancel others, are left to it.
func TestMountOptions_flagsAndData(t *testing.T) {
	for _, c := range []struct {
		options []string
		flags   uintptr
		data    string
		ok      bool
	}{
		{nil, 0, "", true},
		{[]string{"ro", "noload"}, unix.MS_RDONLY, "noload", true},
		{[]string{"noatime", "data=journal", "nosuid", "commit=30"}, unix.MS_NOATIME | unix.MS_NOSUID, "data=journal,commit=30", true},
		{[]string{"nouuid", "norecovery", "ro"}, unix.MS_RDONLY, "nouuid,norecovery", true},
		{[]string{"rescue=nologreplay"}, 0, "rescue=nologreplay", true},
		{[]string{"_netdev"}, 0, "", false},
		{[]string{"x-systemd.automount"}, 0, "", false},
		{[]string{"noatime", "user"}, 0, "", false},
		{[]string{"loop=/dev/loop0"}, 0, "", false},
		{[]string{"nosuid", "suid"}, 0, "", false},
		{[]string{"ro", "rw"}, 0, "", false},
		{[]string{"noatime", "relatime"}, 0, "", false},
		{[]string{`context="system_u:object_r:svirt_sandbox_file_t:s0:c1,c2"`}, 0, "", false},
		{[]string{`subvol="a,b"`}, 0, "", false},
	} {
		flags, data, ok := mountOptions(c.options)
		if flags != c.flags || data != c.data || ok != c.ok {
			t.Errorf("%q: flags %#x, data %q, %v; want %#x, %q, %v", c.options, flags, data, ok, c.flags, c.data, c.ok)
		}
	}
}
