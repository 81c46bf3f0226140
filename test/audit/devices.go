package audit

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// layersOf has the layers of each volume by the volume's id, oldest first.
type layersOf map[string][]*lvm2.LV

// checkVolumes checks that each logical volume is a volume, a snapshot, a layer
// that an older snapshot reads through, a flat store that is needed, the blocks
// of a deleted volume that has snapshots, or the link of a newest layer.
func (a *Audit) checkVolumes() (layersOf, error) {
	listed := map[string]size.Bytes{}
	named := map[string]bool{}
	for _, x := range a.Volumes {
		listed[x.LV] = x.Size
	}
	for _, x := range a.Snapshots {
		named[x.LV] = true
	}
	shown := shownBy(a.VG)
	through := readThrough(a.VG)
	layers := layersOf{}
	links := map[string]string{} // origin by store
	for _, lv := range a.VG.LVs {
		if s := lv.Segments[0].Snapshot; s != nil {
			links[s.COWStore] = s.Origin
		} else if t := Tags(lv); t["role"] == "layer" {
			layers[t["of"]] = append(layers[t["of"]], lv)
		}
	}
	for _, of := range layers {
		slices.SortFunc(of, func(a, b *lvm2.LV) int { return int(number(a, "order") - number(b, "order")) })
	}
	orphans := maps.Clone(layers)
	for _, lv := range a.VG.LVs {
		t := Tags(lv)
		length := size.Bytes(lv.Size()) * a.VG.ExtentSize.Bytes()
		switch {
		case lv.Segments[0].Snapshot != nil:
		case len(t) == 0 && slices.Contains(a.Foreign, lv.Name):
			delete(links, lv.Name)
		case t["role"] == "layer":
		case t["role"] == "flat" && through[t["reads"]]:
		case t["role"] != "volume":
			return nil, fmt.Errorf("stray logical volume %s %v", lv.Name, lv.Tags)
		case listed[lv.Name] == 0 && (!has(lv, "deleted") || len(layers[string(lv.ID)]) == 0):
			return nil, fmt.Errorf("half-made volume %s %v", lv.Name, lv.Tags)
		case listed[lv.Name] != 0 && length != listed[lv.Name]:
			return nil, fmt.Errorf("volume %s has %v on the disk and %v in the list", lv.Name, length, listed[lv.Name])
		}
		delete(orphans, string(lv.ID))
		for i, l := range layers[string(lv.ID)] {
			useful := cow.LargestUseful(size.Sectors(number(l, "length")).Bytes(), size.Sectors(number(l, "chunk")).Bytes())
			if have := size.Bytes(l.Size()) * a.VG.ExtentSize.Bytes(); have > useful.RoundUp(a.VG.ExtentSize.Bytes()) {
				return nil, fmt.Errorf("layer %s has %v, but can use no more than %v", l.Name, have, useful)
			}
			newest := i == len(layers[string(lv.ID)])-1
			if origin, live := links[l.Name]; live != newest || live && origin != lv.Name {
				return nil, fmt.Errorf("layer %s of %s (newest: %t) is a snapshot of %q", l.Name, lv.Name, newest, origin)
			}
			if i == 0 && !named[l.Name] && !shown[string(l.ID)] {
				return nil, fmt.Errorf("nobody needs layer %s of %s", l.Name, lv.Name)
			}
			delete(links, l.Name)
			delete(named, l.Name)
		}
		delete(listed, lv.Name)
	}
	if len(links) > 0 || len(named) > 0 || len(listed) > 0 || len(orphans) > 0 {
		return nil, fmt.Errorf("missing on the disk, or without a volume: stores %v, snapshots %v, volumes %v, layers of %v", links, named, listed, orphans)
	}
	return layers, nil
}

// shownBy returns the ids of the layers that volumes show.
func shownBy(vg *lvm2.VG) map[string]bool {
	shown := map[string]bool{}
	for _, lv := range vg.LVs {
		if t := Tags(lv); t["role"] == "volume" {
			shown[t["reads"]] = true
		}
	}
	return shown
}

// readThrough returns the ids of the layers that volumes show, and of all newer
// layers of the same volumes. A reader of an older layer may read through the
// flat store of a newer one.
func readThrough(vg *lvm2.VG) map[string]bool {
	oldest := map[string]int64{} // shown, by the volume
	for id := range shownBy(vg) {
		if l := vg.LVByID(lvm2.ID(id)); l != nil {
			of := Tags(l)["of"]
			if n, is := oldest[of]; !is || number(l, "order") < n {
				oldest[of] = number(l, "order")
			}
		}
	}
	through := map[string]bool{}
	for _, l := range vg.LVs {
		t := Tags(l)
		if n, is := oldest[t["of"]]; is && t["role"] == "layer" && number(l, "order") >= n {
			through[string(l.ID)] = true
		}
	}
	return through
}

// readDevices lists the group's devices and checks that active volumes have
// theirs: one for a volume without snapshots, else four. It returns the devices
// that belong to no active volume.
func (a *Audit) readDevices(layers layersOf, limit time.Duration) ([]string, error) {
	client, err := dm.Open()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	if a.Devices, err = Steady(client, a.VG.Name, limit); err != nil {
		return nil, err
	}
	stray := maps.Clone(a.Devices)
	for _, x := range a.Volumes {
		if !a.Active(x.LV) {
			continue
		}
		own := lvm2.DMName(a.VG.Name, x.LV, "")
		if a.Devices[own].ReadOnly != x.ReadOnly {
			return nil, fmt.Errorf("volume %s: its device is read-only: %t", x.LV, !x.ReadOnly)
		}
		for name, target := range a.devicesOf(x, layers) {
			table, err := client.Table(name)
			if err != nil || table[0].Target.Type() != target {
				return nil, fmt.Errorf("active volume %s: device %s must be %s: %v %w", x.LV, name, target, table, err)
			}
			delete(stray, name)
		}
		for _, name := range a.chainOf(x, layers) {
			delete(stray, name)
		}
	}
	for _, lv := range a.Foreign {
		for _, layer := range []string{"", "real", "cow"} {
			delete(stray, lvm2.DMName(a.VG.Name, lv, layer))
		}
	}
	return slices.Sorted(maps.Keys(stray)), nil
}

// devicesOf returns the devices that an active volume must have, with their targets.
func (a *Audit) devicesOf(x pool.Volume, layers layersOf) map[string]string {
	group := a.VG.Name
	own := lvm2.DMName(group, x.LV, "")
	of := layers[string(a.VG.LV(x.LV).ID)]
	if x.Transient {
		return map[string]string{own: "snapshot", lvm2.DMName(group, x.LV, "cow"): "linear"}
	}
	if len(of) == 0 {
		return map[string]string{own: "linear"}
	}
	newest := of[len(of)-1].Name
	return map[string]string{
		own: "snapshot-origin", lvm2.DMName(group, x.LV, "real"): "linear",
		lvm2.DMName(group, newest, ""): "snapshot", lvm2.DMName(group, newest, "cow"): "linear",
	}
}

// chainOf returns the devices that may lie below an active volume that shows a
// snapshot.
func (a *Audit) chainOf(x pool.Volume, layers layersOf) (names []string) {
	shows := a.VG.LVByID(lvm2.ID(Tags(a.VG.LV(x.LV))["reads"]))
	if shows == nil {
		return nil
	}
	of := Tags(shows)["of"]
	names = append(names, lvm2.DMName(a.VG.Name, a.VG.LVByID(lvm2.ID(of)).Name, "real"))
	for _, l := range layers[of] {
		if number(l, "order") >= number(shows, "order") {
			names = append(names, lvm2.DMName(a.VG.Name, l.Name, ""), lvm2.DMName(a.VG.Name, l.Name, "cow"))
		}
	}
	for _, lv := range a.VG.LVs {
		if t := Tags(lv); t["role"] == "flat" && t["of"] == of {
			names = append(names, lvm2.DMName(a.VG.Name, lv.Name, "cow"))
		}
	}
	return names
}

// Steady lists a group's devices once no device is suspended or half-made. A
// device may be for a moment, while a store grows or is trimmed.
func Steady(client *dm.Client, group string, limit time.Duration) (map[string]dm.Info, error) {
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		all, err := client.List()
		if err != nil {
			return nil, err
		}
		devices := map[string]dm.Info{}
		moving := ""
		for _, d := range all {
			if !strings.HasPrefix(d.Name, strings.ReplaceAll(group, "-", "--")+"-") {
				continue
			}
			info, err := client.Info(d.Name)
			if err != nil {
				moving = err.Error() // the device was removed just now
			} else if info.Suspended || !info.Live || info.Loaded {
				moving = fmt.Sprintf("device %s: suspended %t, has a live table %t, has another table loaded %t", d.Name, info.Suspended, info.Live, info.Loaded)
			}
			devices[d.Name] = info
		}
		if moving == "" {
			return devices, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%s", moving)
		}
	}
}
