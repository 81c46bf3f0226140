package pool

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

func FuzzTagCodec(f *testing.F) {
	for _, s := range []string{"", "pvc-1", "a b", "=", "=3d", "ä€\x00\xff", "snapshot/with:every#char&!"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e := encodeTag(s)
		if err := lvm2.CheckTag(tag(tagName, s)); err != nil && s != "" && len(s) < 300 {
			t.Fatalf("%q becomes the tag %q: %v", s, e, err)
		}
		back, err := decodeTag(e)
		if err != nil || back != s {
			t.Fatalf("%q → %q → %q (%v)", s, e, back, err)
		}
	})
}

func FuzzDecodeTag(f *testing.F) {
	for _, s := range []string{"a=", "=4", "=zz", "=41", "=C3", "a b", "=20"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if v, err := decodeTag(s); err == nil && encodeTag(v) != s {
			t.Fatalf("%q decodes to %q, which encodes to %q: two tags for one string", s, v, encodeTag(v))
		}
	})
}

func TestTags(t *testing.T) {
	tags := []string{"theirs", tag(tagRole, roleVolume), tag(tagName, "a b"), tag(tagUnformatted)}
	p, err := readProperties(tags)
	if err != nil || p[tagRole] != roleVolume || p[tagName] != "a b" || len(p) != 3 {
		t.Fatalf("read %v, %v", p, err)
	}
	tags = setTag(tags, tagName, "c")
	tags = dropTags(tags, tagUnformatted)
	if p, err = readProperties(tags); err != nil || p[tagName] != "c" || len(p) != 2 || tags[0] != "theirs" {
		t.Fatalf("after a change: %q, %v", tags, err)
	}
	for _, bad := range [][]string{{tagPrefix + "name=a b"}, {tag(tagName, "a"), tag(tagName, "b")}} {
		if p, err := readProperties(bad); err == nil {
			t.Errorf("%q was read as %v", bad, p)
		}
	}
}
