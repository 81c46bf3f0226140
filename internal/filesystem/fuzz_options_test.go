package filesystem

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
)

// FuzzMountOptions: any options of a class are split into options that split no
// further, and compared with any options of a mount in a moment.
func FuzzMountOptions(f *testing.F) {
	f.Add(`noatime,context="system_u:object_r:x_t:s0:c1,c2",nosuid`, "rw,noatime", `rw,context="system_u:object_r:x_t:s0:c1,c2"`)
	f.Add("context=a:b:c:s0-s0:c0.c1023", "", "context=a:b:c:s0-s0:c0.c1023")
	f.Add("context=a:b:c:s0-s0:c-9223372036854775807.c1", "", "context=a:b:c:s0-s0:c1") // more categories than memory
	f.Add(`"`, ",", `=,"`)
	f.Fuzz(func(t *testing.T, asked, mount, super string) {
		options := SplitOptions(asked)
		for _, o := range options {
			if o == "" || o != strings.TrimSpace(o) {
				t.Errorf("%q: the option %q", asked, o)
			}
		}
		if strings.Count(asked, `"`)%2 == 0 {
			if again := SplitOptions(strings.Join(options, ",")); !slices.Equal(again, options) {
				t.Errorf("%q: %q, and then %q", asked, options, again)
			}
		}
		began := time.Now()
		err := InEffect(&mountinfo.Info{Options: mount, VFSOptions: super}, options)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("compared for %v", took)
		}
		for _, o := range options {
			name, want := value(o)
			if !slices.Contains(seLinuxOptions, name) {
				continue
			}
			if !sameLabel(want, want) {
				t.Errorf("the label %q is not the same as itself", want)
			}
			if err == nil && !strings.Contains(super, name) {
				t.Errorf("%q is in effect at %q", o, super)
			}
		}
	})
}

// FuzzMountTable: a mount table with any lines is refused or understood.
func FuzzMountTable(f *testing.F) {
	f.Add("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext4 /dev/root rw,errors=continue\n")
	f.Add("1 0 0:1 / /a\\040b ro - tmpfs none rw\n")
	f.Fuzz(func(t *testing.T, table string) {
		mounts, err := mountinfo.GetMountsFromReader(strings.NewReader(table), nil)
		if err != nil {
			return
		}
		if lines := strings.Count(table, "\n") + 1; len(mounts) > lines {
			t.Errorf("%d mounts of %d lines", len(mounts), lines)
		}
		for _, m := range mounts {
			if !SameContent(m, m) || HasOption(m, "ro") && !strings.Contains(table, "ro") {
				t.Errorf("%+v", m)
			}
			if group := PeerGroup(m); !strings.Contains(table, group) {
				t.Errorf("%+v: its peer group is %q", m, group)
			}
		}
	})
}
