package catalog

import (
	"errors"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestStaticUse_internalVolumes: a static volume may name a marked logical volume of any type,
// but none that is internal to LVM2. The error for an unmarked one says how to mark it.
func TestStaticUse_internalVolumes(t *testing.T) {
	shown, hidden := []string{lvm2.StatusRead, lvm2.StatusWrite, lvm2.StatusVisible}, []string{lvm2.StatusRead, lvm2.StatusWrite}
	of := func(kind string) []lvm2.Segment { return []lvm2.Segment{{Count: 1, Type: kind}} }
	allowed := []string{Tag(tagStatic)}
	vg := &lvm2.VG{Name: "vg", LVs: []*lvm2.LV{
		{Name: "files", Status: shown, Segments: of(lvm2.TypeStriped), Tags: allowed},
		{Name: "raid", Status: shown, Segments: of("raid1"), Tags: allowed},
		{Name: "thin", Status: shown, Segments: of("thin"), Tags: allowed},
		{Name: "root", Status: shown, Segments: of(lvm2.TypeStriped)},
		{Name: "raid_rimage_0", Status: hidden, Segments: of(lvm2.TypeStriped), Tags: allowed},
		{Name: "tpool", Status: shown, Segments: of("thin-pool"), Tags: allowed},
		{Name: "tpool_tdata", Status: hidden, Segments: of(lvm2.TypeStriped), Tags: allowed},
		{Name: "cpool", Status: shown, Segments: of("cache-pool"), Tags: allowed},
		{Name: "pvmove0", Status: shown, Segments: of("mirror"), Tags: allowed},
		{Name: "snap", Status: shown, Segments: of(lvm2.TypeStriped), Tags: allowed},
		{Name: "snapshot0", Status: shown, Segments: []lvm2.Segment{{Count: 1, Type: lvm2.TypeSnapshot, Snapshot: &lvm2.SnapshotSegment{Origin: "files", COWStore: "snap"}}}},
	}}
	for i, lv := range vg.LVs {
		lv.ID = lvm2.ID(strings.Repeat(string(rune('a'+i)), 32))
	}
	v := NewView(vg, nil)
	for _, lv := range vg.LVs {
		err := v.StaticUse(lv)
		if may := lv.Name == "files" || lv.Name == "raid" || lv.Name == "thin"; may != (err == nil) || err != nil && !errors.Is(err, ErrPrecondition) {
			t.Errorf("%s: the error is %v; static use is allowed: %v", lv.Name, err, may)
		}
		if lv.Name == "root" && !strings.Contains(err.Error(), "csi-dmsnap import --static POOL root") {
			t.Errorf("the error does not say what to do: %v", err)
		}
	}
}
