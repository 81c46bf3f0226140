//go:build !kernel

package lvm2

import (
	"slices"
	"testing"
)

// TestUsers_links: Users returns the link of a snapshot for its origin and its
// store, for written and for parsed metadata.
func TestUsers_links(t *testing.T) {
	h := testHost(t)
	disks := blankDisks(t, 1, diskSize)
	s := createVG(t, h, disks, CreateOptions{})
	link := func(vg *VG) error {
		return vg.Add(&LV{Name: "snapshot0", ID: NewID(), Status: []string{StatusRead}, Segments: []Segment{{
			Count: 1, Type: TypeSnapshot, Snapshot: &SnapshotSegment{ChunkSize: 8, Origin: "origin", COWStore: "store"}}}})
	}
	for _, change := range []func(*VG) error{addLV("origin", 0, 0, 1), addLV("store", 0, 1, 1), addLV("origin2", 0, 2, 1), link} {
		edit(t, s, change)
	}
	for _, vg := range []*VG{read(t, s), read(t, openVG(t, h, disks))} { // as written and as parsed
		for name, want := range map[string][]string{"origin": {"snapshot0"}, "store": {"snapshot0"}, "origin2": nil, "none": nil} {
			if got := vg.Users(name); !slices.Equal(got, want) {
				t.Errorf("users of %s: %v, want %v", name, got, want)
			}
		}
	}
}
