package catalog

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// FuzzTagCodec: every string is decoded as it was encoded, and a short one fits into a tag.
func FuzzTagCodec(f *testing.F) {
	for _, s := range []string{"", "pvc-1", "a b", "=", "=3d", "ä€\x00\xff", "snapshot/with:every#char&!"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e := encodeTag(s)
		if err := lvm2.CheckTag(Tag(tagName, s)); err != nil && s != "" && len(s) < 300 {
			t.Fatalf("%q is encoded as %q, which LVM2 refuses in a tag: %v", s, e, err)
		}
		back, err := decodeTag(e)
		if err != nil || back != s {
			t.Fatalf("%q is encoded as %q, and decoded as %q, %v", s, e, back, err)
		}
	})
}

// FuzzDecodeTag: no two texts are decoded as the same string.
func FuzzDecodeTag(f *testing.F) {
	for _, s := range []string{"a=", "=4", "=zz", "=41", "=C3", "a b", "=20"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if v, err := decodeTag(s); err == nil && encodeTag(v) != s {
			t.Fatalf("two tags for one string: %q is decoded as %q, which is encoded as %q", s, v, encodeTag(v))
		}
	})
}

// TestTag_roundTrip: a tag is decoded as it was written. A tag that is given twice, or has an
// unknown key, makes the others doubtful.
func TestTag_roundTrip(t *testing.T) {
	tags := []string{"theirs", Tag(tagRole, roleVolume), Tag(tagName, "a b"), Tag(tagUnformatted)}
	p, odd, err := readProperties(tags)
	if err != nil || odd != nil || p[tagRole] != roleVolume || p[tagName] != "a b" || len(p) != 3 {
		t.Fatalf("%q is decoded as %v, %v, %v", tags, p, odd, err)
	}
	tags = SetTag(tags, tagName, "c")
	tags = DropTags(tags, tagUnformatted)
	if p, _, err = readProperties(tags); err != nil || p[tagName] != "c" || len(p) != 2 || tags[0] != "theirs" {
		t.Fatalf("after changes, %q is decoded as %v, %v", tags, p, err)
	}
	if p, _, err := readProperties([]string{tagPrefix + "name=a b"}); err == nil {
		t.Errorf("a bad value is decoded as %v", p)
	}
	for _, bad := range [][]string{{Tag(tagName, "a"), Tag(tagName, "b")}, {Tag(tagName, "a"), Tag("later")}} {
		if p, odd, err := readProperties(bad); odd == nil || err != nil || p[tagName] != "a" {
			t.Errorf("%q is decoded as %v, %v, %v; want doubtful tags with the first name", bad, p, odd, err)
		}
	}
}
