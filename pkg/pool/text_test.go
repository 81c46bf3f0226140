package pool

import (
	"errors"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// A new snapshot leaves half of the reserve to live stores of other volumes.
func TestRoomForStore(t *testing.T) {
	v := rollbackGroup(t)
	p := &Pool{config: Config{LayerReserve: 20}} // of 499 extents
	v.free = rangeSet{{Start: 100, Count: 60}}
	base, bare := v.volumeByLV("base"), v.volumeByLV("bare")
	for _, c := range []struct {
		of   *volume
		n    lvm2.Extents
		want error
	}{{bare, 11, nil}, {bare, 12, ErrNoSpace}, {base, 12, nil}} { // of base no other volume has a store
		if err := p.roomForStore(v, c.of, c.n); !errors.Is(err, c.want) {
			t.Errorf("%d extents for %s: %v, want %v", c.n, c.of.lv.Name, err, c.want)
		}
	}
}
