package filesystem

import (
	"errors"
	"slices"
	"testing"

	"github.com/moby/sys/mountinfo"
)

// Options are split at commas, except between quotation marks.
func TestSplitOptions_quoted(t *testing.T) {
	got := SplitOptions("noatime,ro", `context="system_u:object_r:container_file_t:s0:c1,c2",discard`, "", " nodev , commit=5,", "data=journal")
	want := []string{"noatime", "ro", `context="system_u:object_r:container_file_t:s0:c1,c2"`, "discard", "nodev", "commit=5", "data=journal"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// An option that the mount table shows must be there, in any order and
// spelling.
func TestInEffect_table(t *testing.T) {
	const label = "system_u:object_r:container_file_t:"
	for _, c := range []struct {
		asked, mount, super string
		want                bool
	}{
		{"noatime,ro", "ro,noatime", "ro", true},
		{"discard,data=ordered,rw", "rw,relatime", "rw", true}, // the kernel does not show defaults
		{"noexec,nosuid", "rw,nosuid,relatime", "rw", false},
		{"noexec,exec", "rw,relatime", "rw", true},
		{"noatime,relatime", "rw,relatime", "rw", true},
		{`context="` + label + `s0:c1,c2"`, "rw", "rw,context=\"" + label + `s0:c1,c2",stripe=4`, true},
		{`context="` + label + `s0:c26,c5"`, "rw", "rw,context=\"" + label + `s0:c5,c26"`, true},
		{`context="` + label + `s0:c3,c1,c2"`, "rw", "rw,context=" + label + "s0:c1.c3", true},
		{"context=" + label + "s0-s0:c0.c1023", "rw", "rw,context=" + label + "s0-s0:c0.c1023", true},
		{"context=" + label + "s0", "rw", "rw,context=" + label + "s0", true},
		{"context=" + label + "s0", "rw", "rw,context=" + label + "s0:c1", false},
		{`context="` + label + `s0:c1,c2"`, "rw", "rw,context=\"" + label + `s0:c1,c3"`, false},
		{"context=" + label + "s0", "rw", "rw,context=system_u:object_r:other_t:s0", false},
		{"context=" + label + "s0", "rw", "rw,seclabel", false},
		{"fscontext=a:b:c", "rw", "rw", false},
		{"defcontext=a:b:c", "rw", "rw", false},
		{"rootcontext=a:b:c", "rw", "rw", false},
		{"rootcontext=a:b:c", "rw", "rw,rootcontext=a:b:c", true},
	} {
		err := InEffect(&mountinfo.Info{Options: c.mount, VFSOptions: c.super}, SplitOptions(c.asked))
		if (err == nil) != c.want || err != nil && !errors.Is(err, ErrNotInEffect) {
			t.Errorf("%s of %s - %s: %v", c.asked, c.mount, c.super, err)
		}
	}
}

// Categories beyond any kernel's are not counted one by one: a few bytes of text would
// need much memory.
func TestLevels_wideRange(t *testing.T) {
	for _, c := range []struct {
		text string
		most int
	}{{"s0:c0.c1023", 1025}, {"s0:c100000.c165000", 2}, {"s0:c5.c3", 2}} {
		if n := len(levels(c.text)[0]); n != c.most {
			t.Errorf("%s: %d names, want %d", c.text, n, c.most)
		}
	}
}
