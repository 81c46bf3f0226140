package pool

import (
	"errors"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestRoomForStore_halfOfTheReserve: a new snapshot leaves half of the reserve to live
// stores of other volumes.
func TestRoomForStore_halfOfTheReserve(t *testing.T) {
	v := rollbackGroup(t)
	p := &Pool{setting: setting{config: Config{LayerReserve: 20}}} // of 499 extents
	v.Free = catalog.RangeSet{{Start: 100, Count: 60}}
	allTrimmed(v)
	base, bare := v.VolumeByLV("base"), v.VolumeByLV("bare")
	for _, c := range []struct {
		of   *catalog.Volume
		n    lvm2.Extents
		want error
	}{{bare, 11, nil}, {bare, 12, ErrNoSpace}, {base, 12, nil}} { // only base itself has a live store
		if err := p.roomForStore(v, c.of, c.n); !errors.Is(err, c.want) {
			t.Errorf("%d extents for %s: %v, want %v", c.n, c.of.LV.Name, err, c.want)
		}
	}
}

// allTrimmed marks the stores of all layers as trimmed, so that none has room to give.
func allTrimmed(v *view) {
	for _, l := range v.Layers.All() {
		l.Trimmed = true
	}
}

// TestReserve_zero: NoReserve means a reserve of 0, and no LayerReserve the default of
// 5 percent. Both settings together are invalid.
func TestReserve_zero(t *testing.T) {
	v := rollbackGroup(t)
	v.Free = catalog.RangeSet{{Start: 100, Count: 60}}
	allTrimmed(v)
	for _, c := range []struct {
		config        Config
		reserve, room lvm2.Extents
	}{{Config{}, 24, 36}, {Config{LayerReserve: 10}, 49, 11}, {Config{NoReserve: true}, 0, 60}} { // of 499 extents
		p := &Pool{setting: setting{config: c.config.withDefaults()}}
		if reserve, room := p.reserve(v), p.room(v); reserve != c.reserve || room != c.room {
			t.Errorf("%+v: reserve %d, room %d; want %d, %d", c.config, reserve, room, c.reserve, c.room)
		}
		if err := p.roomForStore(v, v.VolumeByLV("bare"), 60); c.config.NoReserve != (err == nil) {
			t.Errorf("%+v: a store of all free extents: %v", c.config, err)
		}
	}
	if err := (Config{Name: "a", NoReserve: true, LayerReserve: 5}).Check(); !errors.Is(err, ErrInvalid) {
		t.Errorf("NoReserve with a reserve of 5 percent returned %v", err)
	}
}
