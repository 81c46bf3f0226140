//go:build kernel

package flush

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestCached_cut: a power cut leaves all that was flushed, and of the rest only what the
// disk may have written. A write that was overwritten durably never comes back.
func TestCached_cut(t *testing.T) {
	const sector = size.SectorBytes
	of := func(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n*sector) }
	d := newCached(newMemory(nil), size.MiB)
	for n, e := range []event{
		{Kind: write, At: 0, Len: 2 * sector, Data: of('a', 2)},
		{Kind: flush},
		{Kind: write, At: 0, Len: 2 * sector, Data: of('b', 2)},
		{Kind: through, At: 0, Len: sector, Data: of('c', 1)},
		{Kind: write, At: 4 * sector, Len: 64 * sector, Data: of('d', 64)},
		{Kind: write, At: 68 * sector, Len: sector, Data: of('e', 1)},
		{Kind: discard, At: 68 * sector, Len: sector},
	} {
		d.happen(n, e)
	}
	seen := map[string]bool{}
	for i := range 200 {
		l := loss(i % int(one))
		got := make([]byte, 69*sector)
		_ = d.cut(l, rand.New(rand.NewPCG(uint64(i), 0))).read(got, 0)
		if got[0] != 'c' {
			t.Fatalf("%v: the durable sector has %q", l, got[0])
		}
		second, wide, last := got[sector], got[4*sector:68*sector], got[68*sector]
		switch {
		case l == all && (second != 'a' || !bytes.Equal(wide, make([]byte, len(wide))) || last != 0):
			t.Fatalf("%v: %q %q", l, second, last)
		case l == none && (second != 'b' || !bytes.Equal(wide, of('d', 64)) || last != 0):
			t.Fatalf("%v: %q %q", l, second, last)
		}
		isTorn := bytes.IndexByte(wide, 'd') >= 0 && bytes.IndexByte(wide, 0) >= 0
		if isTorn && l != torn {
			t.Fatalf("%v: a write is torn", l)
		}
		seen[string([]byte{byte(l), second})], seen[string([]byte{byte(l), 'w', last})] = true, true
		seen[string([]byte{byte(l), 't'})] = seen[string([]byte{byte(l), 't'})] || isTorn
	}
	for _, want := range []string{"\x02a", "\x02b", "\x03a", "\x03b", "\x02we", "\x02w\x00", "\x03t"} {
		if !seen[want] {
			t.Errorf("%q never happened", want)
		}
	}
}
