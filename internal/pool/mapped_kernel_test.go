//go:build kernel

package pool

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestMappings_unreadableTable: another program's device with an unknown target keeps
// the disk below it from being allocated, and no other disk.
func TestMappings_unreadableTable(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.Devices, c.NoReserve = testDisks(t)[:2], true })
	const foreign = "foreign-odd"
	v := must(p.latest())(t)
	pv := must(dm.DeviceOf(v.VG.PVs[0].Device))(t)
	must(p.dm.Create(foreign, "foreign"))(t)
	defer p.dm.Remove(foreign, 0)
	ok(t, p.dm.Load(foreign, whole(8, dm.Linear{Device: pv, Offset: v.VG.PVs[0].PEStart}), true))
	ok(t, p.dm.Resume(foreign, 0))
	odd := errors.New("a target that is not understood")
	ok(t, p.do(ctx, &change{what: "replace the question for mapped extents", edit: func(*edit) error {
		p.mapped = func(v *view) ([]catalog.Mapping, error) {
			return p.mappingsBy(v, func(name string) (dm.Table, error) {
				if name == foreign {
					return nil, odd
				}
				return p.dm.Table(name)
			})
		}
		return nil
	}}))
	a := must(p.CreateVolume(ctx, VolumeSpec{Name: "a", Size: 32 * size.MiB, Mode: Block}))(t)
	v = must(p.latest())(t)
	if at := must(catalog.Physical(v.VG.LV(a.LV)))(t); at[0].PV != 1 {
		t.Errorf("the volume got extents that may be mapped: %v", at)
	}
	all := size.Bytes(v.Free.Size()) * v.ExtentSize()
	if _, err := p.CreateVolume(ctx, VolumeSpec{Name: "all", Size: all, Mode: Block}); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), foreign) {
		t.Errorf("a volume of all free extents returned %v", err)
	}
	said := ""
	for _, c := range p.PoolHealth(ctx) {
		said += c.Reason + " " + c.Message + "\n"
	}
	if !strings.Contains(said, foreign) || !strings.Contains(said, odd.Error()) {
		t.Errorf("health says %s", said)
	}
	ok(t, p.dm.Remove(foreign, 0))
	ok(t, p.DeleteVolume(ctx, a.LV))
	waitIdle(t, p)
	must(p.CreateVolume(ctx, VolumeSpec{Name: "all", Size: all, Mode: Block}))(t)
}
