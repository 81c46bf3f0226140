//go:build !kernel

package lvm2

import (
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestLost_writes: a disk that lost more than an interrupted commit explains is named,
// also after its metadata has been rewritten; an interrupted commit names no disk.
func TestLost_writes(t *testing.T) {
	h := testHost(t)
	disks := blankDisks(t, 2, diskSize)
	s := createVG(t, h, disks, CreateOptions{})
	snapshot := func() []byte { return content(t, disks[1], 0, int(size.MiB)) }
	states := [][]byte{snapshot()}
	for _, name := range []string{"a", "b", "c"} {
		edit(t, s, addLV(name, 0, Extents(len(states)), 1))
		states = append(states, snapshot())
	}
	newest := states[len(states)-1]
	other := content(t, disks[0], 0, int(size.MiB))
	named := func(what string, s *Store, want bool) {
		t.Helper()
		lost := s.Lost()
		if is := len(lost) == 1 && strings.Contains(lost[0].Error(), disks[1]); is != want || len(lost) > 1 {
			t.Errorf("%s: %v", what, lost)
		}
	}
	for i, state := range states {
		overwrite(t, disks[0], 0, other)
		overwrite(t, disks[1], 0, state)
		behind := len(states) - 1 - i
		again := openVG(t, h, disks)
		named("after a restart", again, behind > 1)
		edit(t, again, func(vg *VG) error { return vg.Replace(vg.LV("a").Clone()) })
		named("after the next commit", again, behind > 1)
		if again.Stale() {
			t.Error("the next commit did not rewrite the disk")
		}
	}
	edit(t, s, addLV("d", 0, 4, 1))
	states = append(states, snapshot())
	edit(t, s, addLV("e", 0, 5, 1))
	named("before the disk forgets", s, false)
	overwrite(t, disks[1], 0, states[len(states)-1])
	if vg := read(t, s); vg.LV("e") == nil {
		t.Error("the older copy was taken")
	}
	named("a disk that forgets while it is used", s, true)

	overwrite(t, disks[1], 0, newest)
	flip(t, disks[1], textStart(t, disks[1])+100)
	named("a damaged text", openVG(t, h, disks), true)
}
