package main

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	settleLimit = 90 * time.Second // for copies and wiping to come to an end
	steadyLimit = 20 * time.Second // for devices to be what they must, then: layers are folded one after the other
)

// survey is what the disks and the kernel have once background work is done.
// Taking it checks that nothing is there but what the pool's volumes and
// snapshots need.
type survey struct {
	vg      *lvm2.VG
	list    Listing
	devices map[string]dm.Info
}

func (s *session) survey() *survey {
	var v *survey
	for deadline := (time.Time{}); ; time.Sleep(20 * time.Millisecond) {
		var stray []string
		s.settled(func(vg *lvm2.VG) {
			v = &survey{vg: vg}
			var err error
			if v.list, err = s.driver.list(); err != nil {
				fail("listing: %v", err)
			}
			stray = v.readDevices(v.checkVolumes())
		})
		if len(stray) == 0 {
			break
		}
		// What was wiped or folded a moment ago may still have its devices, and
		// what is folded now has some.
		if deadline.IsZero() {
			deadline = time.Now().Add(steadyLimit)
		}
		if time.Now().After(deadline) {
			fail("stray devices %v", stray)
		}
	}
	v.tools()
	s.ownCheck()
	s.checkWiped(v.vg)
	return v
}

// settled waits until nothing is being copied or wiped and calls look with the
// metadata, which does not change meanwhile: layers are folded in the background.
func (s *session) settled(look func(*lvm2.VG)) {
	ctx, cancel := context.WithTimeout(context.Background(), settleLimit)
	defer cancel()
	store, err := lvm2.OpenVG(ctx, lvm2.Host{}, vgName, strings.Split(s.options.disks, ","))
	if err != nil {
		fail("reading the volume group: %v", err)
	}
	defer store.Close()
	for {
		done, err := settled(ctx, store, look)
		if err != nil {
			hung("waiting for copies and wiping to end: %v", err)
		}
		if done {
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			hung("copying or wiping does not end")
		}
	}
}

// settled calls look, with LVM2's lock held, unless something is being copied or wiped.
func settled(ctx context.Context, store *lvm2.Store, look func(*lvm2.VG)) (bool, error) {
	lock, err := lvm2.Host{}.LockVG(ctx, vgName, lvm2.Shared)
	if err != nil {
		return false, err
	}
	defer lock.Unlock()
	vg, err := store.Read(ctx)
	if err != nil || slices.ContainsFunc(vg.LVs, func(lv *lvm2.LV) bool {
		t := tags(lv)
		return t["copy"] != "" || t["role"] == "trash"
	}) {
		return false, err
	}
	look(vg)
	return true, nil
}

// idInTag restores the bytes that ids have and values of tags have not.
var idInTag = strings.NewReplacer("=21", "!", "=23", "#")

// tags returns the pool's tags of a logical volume.
func tags(lv *lvm2.LV) map[string]string {
	t := map[string]string{}
	for _, tag := range lv.Tags {
		if rest, ours := strings.CutPrefix(tag, "dmsnap:"); ours {
			key, value, _ := strings.Cut(rest, "=")
			t[key] = idInTag.Replace(value)
		}
	}
	return t
}

func names(lvs []*lvm2.LV) string {
	var out []string
	for _, lv := range lvs {
		out = append(out, fmt.Sprintf("%s %v", lv.Name, lv.Tags))
	}
	return strings.Join(out, "; ")
}

// checkVolumes sees to it that each logical volume is a volume, a snapshot, a
// layer that an older snapshot reads through, the blocks of a deleted volume
// that has snapshots, or the link of a newest layer. It returns the layers of
// each volume, by id, oldest first.
func (v *survey) checkVolumes() map[string][]*lvm2.LV {
	listed := map[string]size.Bytes{}
	named := map[string]bool{}
	for _, x := range v.list.Volumes {
		listed[x.LV] = x.Size
	}
	for _, x := range v.list.Snapshots {
		named[x.LV] = true
	}
	shown := map[string]bool{} // layers that volumes show
	for _, lv := range v.vg.LVs {
		shown[tags(lv)["reads"]] = true
	}
	layers := map[string][]*lvm2.LV{}
	links := map[string]string{} // origin by store
	for _, lv := range v.vg.LVs {
		if s := lv.Segments[0].Snapshot; s != nil {
			links[s.COWStore] = s.Origin
		} else if t := tags(lv); t["role"] == "layer" {
			layers[t["of"]] = append(layers[t["of"]], lv)
		}
	}
	for _, of := range layers {
		slices.SortFunc(of, func(a, b *lvm2.LV) int { return int(number(a, "order") - number(b, "order")) })
	}
	orphans := maps.Clone(layers)
	for _, lv := range v.vg.LVs {
		t := tags(lv)
		length := size.Bytes(lv.Size()) * v.vg.ExtentSize.Bytes()
		switch {
		case lv.Segments[0].Snapshot != nil:
		case t["role"] == "layer":
		case t["role"] != "volume":
			fail("stray logical volume %s %v", lv.Name, lv.Tags)
		case listed[lv.Name] == 0 && (!has(lv, "deleted") || len(layers[string(lv.ID)]) == 0):
			fail("half-made volume %s %v", lv.Name, lv.Tags)
		case listed[lv.Name] != 0 && length != listed[lv.Name]:
			fail("volume %s has %v on the disk and %v in the list", lv.Name, length, listed[lv.Name])
		}
		delete(orphans, string(lv.ID))
		for i, l := range layers[string(lv.ID)] {
			useful := size.Bytes(cow.LargestUseful(size.Sectors(number(l, "length")).Bytes(), size.Sectors(number(l, "chunk")).Bytes()))
			if have := size.Bytes(l.Size()) * v.vg.ExtentSize.Bytes(); have > useful.RoundUp(v.vg.ExtentSize.Bytes()) {
				fail("layer %s has %v, it cannot use more than %v", l.Name, have, useful)
			}
			newest := i == len(layers[string(lv.ID)])-1
			if origin, live := links[l.Name]; live != newest || live && origin != lv.Name {
				fail("layer %s of %s, the newest: %t, is a snapshot of %q", l.Name, lv.Name, newest, origin)
			}
			if i == 0 && !named[l.Name] && !shown[string(l.ID)] {
				fail("nobody needs layer %s of %s", l.Name, lv.Name)
			}
			delete(links, l.Name)
			delete(named, l.Name)
		}
		delete(listed, lv.Name)
	}
	if len(links) > 0 || len(named) > 0 || len(listed) > 0 || len(orphans) > 0 {
		fail("not on the disk, or not joined to a volume: stores %v, snapshots %v, volumes %v, layers of %v", links, named, listed, orphans)
	}
	return layers
}

func has(lv *lvm2.LV, key string) bool { return slices.Contains(lv.Tags, "dmsnap:"+key) }

func number(lv *lvm2.LV, key string) int64 {
	n, err := strconv.ParseInt(tags(lv)[key], 10, 64)
	if err != nil {
		fail("logical volume %s: tag %s: %v", lv.Name, key, err)
	}
	return n
}

// readDevices lists the kernel's devices and sees to it that there are none but
// those of active volumes: one for a volume without snapshots, else four. It
// returns the others.
func (v *survey) readDevices(layers map[string][]*lvm2.LV) []string {
	client, err := dm.Open()
	if err != nil {
		fail("%v", err)
	}
	defer client.Close()
	v.devices = steady(client)
	stray := maps.Clone(v.devices)
	for _, x := range v.list.Volumes {
		if v.active(x.LV) {
			for name, target := range v.devicesOf(x, layers) {
				table, err := client.Table(name)
				if err != nil || table[0].Target.Type() != target {
					fail("active volume %s: device %s must be %s: %v %v", x.LV, name, target, table, err)
				}
				delete(stray, name)
			}
			for _, name := range v.chainOf(x, layers) {
				delete(stray, name)
			}
		}
	}
	return slices.Sorted(maps.Keys(stray))
}

// devicesOf returns the devices that an active volume must have, with their targets.
func (v *survey) devicesOf(x pool.Volume, layers map[string][]*lvm2.LV) map[string]string {
	own := lvm2.DMName(vgName, x.LV, "")
	if v.devices[own].ReadOnly != x.ReadOnly {
		fail("volume %s: its device is read-only: %t", x.LV, !x.ReadOnly)
	}
	of := layers[string(v.vg.LV(x.LV).ID)]
	if x.Transient {
		return map[string]string{own: "snapshot", lvm2.DMName(vgName, x.LV, "cow"): "linear"}
	}
	if len(of) == 0 {
		return map[string]string{own: "linear"}
	}
	newest := of[len(of)-1].Name
	return map[string]string{
		own: "snapshot-origin", lvm2.DMName(vgName, x.LV, "real"): "linear",
		lvm2.DMName(vgName, newest, ""): "snapshot", lvm2.DMName(vgName, newest, "cow"): "linear",
	}
}

// chainOf returns the devices that an active volume which shows a snapshot may have below it.
func (v *survey) chainOf(x pool.Volume, layers map[string][]*lvm2.LV) (names []string) {
	shows := v.vg.LVByID(lvm2.ID(tags(v.vg.LV(x.LV))["reads"]))
	if shows == nil {
		return nil
	}
	of := tags(shows)["of"]
	names = append(names, lvm2.DMName(vgName, v.vg.LVByID(lvm2.ID(of)).Name, "real"))
	for _, l := range layers[of] {
		if number(l, "order") >= number(shows, "order") {
			names = append(names, lvm2.DMName(vgName, l.Name, ""), lvm2.DMName(vgName, l.Name, "cow"))
		}
	}
	return names
}

// steady lists the devices once none is suspended or half-made. For a moment
// one may be: a store grows while the volume is written to, or is trimmed.
func steady(client *dm.Client) map[string]dm.Info {
	for deadline := time.Now().Add(steadyLimit); ; time.Sleep(20 * time.Millisecond) {
		all, err := client.List()
		if err != nil {
			fail("%v", err)
		}
		devices := map[string]dm.Info{}
		moving := ""
		for _, d := range all {
			info, err := client.Info(d.Name)
			if err != nil {
				moving = err.Error() // it went just now
			} else if info.Suspended || !info.Live || info.Loaded {
				moving = fmt.Sprintf("device %s is suspended: %t, has a table: %t, another one loaded: %t", d.Name, info.Suspended, info.Live, info.Loaded)
			}
			devices[d.Name] = info
		}
		if moving == "" {
			return devices
		}
		if time.Now().After(deadline) {
			fail("%s", moving)
		}
	}
}

func (v *survey) active(lv string) bool {
	_, there := v.devices[lvm2.DMName(vgName, lv, "")]
	return there
}

// tools asks lvm2: it has nothing to complain about, and counts as many free
// extents as the logical volumes leave.
func (v *survey) tools() {
	if out, err := exec.Command("vgck", vgName).CombinedOutput(); err != nil || len(out) > 0 {
		fail("vgck: %v\n%s", err, out)
	}
	out, err := exec.Command("vgs", "--noheadings", "-o", "vg_seqno,vg_extent_count,vg_free_count", vgName).CombinedOutput()
	if err != nil {
		fail("vgs: %v\n%s", err, out)
	}
	var seqno uint64
	var total, free, used lvm2.Extents
	if _, err := fmt.Sscan(string(out), &seqno, &total, &free); err != nil {
		fail("vgs: %v\n%s", err, out)
	}
	for _, lv := range v.vg.LVs {
		if s := lv.Segments[0]; s.Snapshot == nil && s.Type != lvm2.TypeError {
			used += lv.Size()
		}
	}
	if seqno == v.vg.Seqno && total-free != used {
		fail("%d of %d extents are allocated, the logical volumes have %d: %s", total-free, total, used, names(v.vg.LVs))
	}
}
