package catalog

import (
	"errors"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestExisting_sameRequest: a repeated request finds its volume, and a request that differs in
// any property is a conflict. A size may differ by the rounding to whole extents.
func TestExisting_sameRequest(t *testing.T) {
	v := NewView(group(t, "copy 30+8 role=volume name=pvc-7 mode=filesystem fs=ext4 source=snapshot/old asked=10000000").vg, nil)
	same := VolumeSpec{Name: "pvc-7", Size: 32 * size.MiB, Mode: Filesystem, FSType: "ext4", Source: Source{Kind: FromSnapshot, LV: "old"}}
	for _, c := range []struct {
		what   string
		change func(s *VolumeSpec)
		err    error
	}{
		{"same", func(*VolumeSpec) {}, nil},
		{"size that was asked for", func(s *VolumeSpec) { s.Size = 10e6 }, nil},
		{"no size", func(s *VolumeSpec) { s.Size = 0 }, nil},
		{"size that gets as many extents", func(s *VolumeSpec) { s.Size = 28*size.MiB + 1 }, nil},
		{"one extent less", func(s *VolumeSpec) { s.Size = 28 * size.MiB }, ErrConflict},
		{"a byte more", func(s *VolumeSpec) { s.Size = 32*size.MiB + 1 }, ErrConflict},
		{"limit", func(s *VolumeSpec) { s.Limit = 32*size.MiB - 1 }, ErrConflict},
		{"mode", func(s *VolumeSpec) { s.Mode = Block }, ErrConflict},
		{"file system", func(s *VolumeSpec) { s.FSType = "xfs" }, ErrConflict},
		{"read-only", func(s *VolumeSpec) { s.ReadOnly = true }, ErrConflict},
		{"shared", func(s *VolumeSpec) { s.Shared = true }, ErrConflict},
		{"transient", func(s *VolumeSpec) { s.Transient = true }, ErrConflict},
		{"source", func(s *VolumeSpec) { s.Source.LV = "new" }, ErrConflict},
		{"source's pool", func(s *VolumeSpec) { s.SourcePool = "fast" }, ErrConflict},
	} {
		spec := same
		c.change(&spec)
		if o, err := v.Existing(spec); !errors.Is(err, c.err) || err == nil && (o == nil || o.LV.Name != "copy") {
			t.Errorf("%s: the volume is %+v, the error %v, want %v", c.what, o, err, c.err)
		}
	}
	if o, err := v.Existing(VolumeSpec{Name: "pvc-8"}); o != nil || err != nil {
		t.Errorf("a new name finds %+v, %v", o, err)
	}
}

// TestGivenOut_edits: a block volume counts as written from its first activation on. A volume
// with a file system, or one that only shows a snapshot, does not.
func TestGivenOut_edits(t *testing.T) {
	out := func(lv string) func(e *Edit) error {
		return func(e *Edit) error { return e.GivenOut(lv) }
	}
	testEdits(t, []editCase{
		{what: "first activation", given: []string{"bare 8+8 role=volume name=pvc-2 mode=block unformatted"}, edit: out("bare"),
			then: []string{"bare 8+8 role=volume name=pvc-2 mode=block"}},
		{what: "later activation", edit: out("bare")},
		{what: "file system", given: []string{"bare 8+8 role=volume name=pvc-2 mode=filesystem fs=ext4 unformatted"}, edit: out("bare")},
		{what: "reader", given: []string{"old 400+2,ro,locked name=old unformatted" + oldTags, readerLine}, edit: out("reader")},
		{what: "no volume", edit: out("nothing")},
	})
}
