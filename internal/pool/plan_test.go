package pool

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestPlan_cuts: the plans for an activation and for the first, second and later cuts
// have the right steps in the right order.
func TestPlan_cuts(t *testing.T) {
	r := newRig(newGroup(t))
	r.volume("vol", 8)
	active := situation{active: []string{"vol"}}
	r.expect("activation", r.converge("activation", active), "create vol", "load vol: 0 65536 linear 0:0 2048", "resume vol")
	r.cut("vol", "s1", 8)
	r.expect("first cut", r.converge("first cut", active),
		"create vol-real", "load vol-real: 0 65536 linear 0:0 2048", "resume vol-real",
		"create s1-cow", "load s1-cow: 0 65536 linear 0:0 67584", "resume s1-cow",
		"create s1", "load s1: 0 65536 snapshot <vol-real> <s1-cow> P 128",
		"load vol: 0 65536 snapshot-origin <vol-real>",
		"suspend vol", "resume s1", "resume vol")
	r.cut("vol", "s2", 8)
	r.expect("next cut", r.converge("next cut", active),
		"create s2-cow", "load s2-cow: 0 65536 linear 0:0 133120", "resume s2-cow",
		"create s2", "load s2: 0 65536 snapshot <vol-real> <s2-cow> P 128",
		"suspend vol", "used s1", "resume s2", "resume vol",
		"remove s1", "remove s1-cow")
	read := situation{active: []string{"vol"}, read: []string{"s2"}}
	r.cut("vol", "s3", 8)
	r.expect("cut while the newest is read", r.converge("cut while the newest is read", read),
		"create s3-cow", "load s3-cow: 0 65536 linear 0:0 198656", "resume s3-cow",
		"create s3", "load s3: 0 65536 snapshot <vol-real> <s3-cow> P 128",
		"suspend vol", "used s2", "resume s3", "resume vol",
		"load s2: 0 65536 snapshot <s3> <s2-cow> P 128", "suspend s2", "resume s2")
	r.expect("the snapshot is no longer read", r.converge("closed", active), "remove s2", "remove s2-cow")
	r.grow("vol", 2)
	r.expect("expand", r.converge("expand", active),
		"load vol-real: 0 65536 linear 0:0 2048; 65536 16384 linear 0:0 264192",
		"load vol: 0 81920 snapshot-origin <vol-real>",
		"suspend vol", "resume vol-real", "resume vol")
	r.grow("s3", 1)
	r.expect("growth", r.converge("growth", active),
		"load s3-cow: 0 65536 linear 0:0 198656; 65536 8192 linear 0:0 280576", "suspend s3-cow", "resume s3-cow")
	r.expect("deactivation", r.converge("deactivation", situation{}),
		"remove vol", "remove s3", "remove s3-cow", "remove vol-real")
}

// TestPlan_lastSnapshotDeleted: after its last snapshot is deleted, a volume becomes
// linear, and the other devices are removed.
func TestPlan_lastSnapshotDeleted(t *testing.T) {
	r := newRig(newGroup(t))
	r.volume("vol", 8)
	r.cut("vol", "s1", 8)
	active := situation{active: []string{"vol"}}
	r.expect("activation", r.converge("activation", active),
		"create vol-real", "load vol-real: 0 65536 linear 0:0 2048", "resume vol-real",
		"create s1-cow", "load s1-cow: 0 65536 linear 0:0 67584", "resume s1-cow",
		"create s1", "load s1: 0 65536 snapshot <vol-real> <s1-cow> P 128", "resume s1",
		"create vol", "load vol: 0 65536 snapshot-origin <vol-real>", "resume vol")
	r.drop("s1")
	trash := r.Trash[0].Name
	got := r.converge("the last snapshot is deleted", active)
	r.expect("the last snapshot is deleted", got,
		"load vol: 0 65536 linear 0:0 2048", "suspend vol", "resume vol", "remove s1", "remove s1-cow", "remove vol-real")
	if strings.Contains(fmt.Sprint(got), trash) {
		t.Error("the snapshot's devices are renamed before they are removed")
	}
}

// TestPlan_swappedNames: a device that has the name of another device is renamed
// first.
func TestPlan_swappedNames(t *testing.T) {
	r := newRig(newGroup(t))
	r.volume("vol", 8)
	active := situation{active: []string{"vol"}}
	r.converge("activation", active)
	c := r.VG.LV("vol").Clone()
	c.Name = "other"
	r.check(r.Put(c))
	r.volume("vol", 8)
	r.opens([]string{"vol"})
	all := append(r.Members()["other"], r.Members()["vol"]...)
	plan := r.view().want(all, r.view().inUse(all, r.kernel, false), running{}, r.kernel).plan(all, r.kernel)
	r.expect("renamed", r.steps(plan), "rename vol to other")
}

// TestPlan_cutOfExpandedWhileRead: a volume that was expanded while only its snapshot
// is read gets longer blocks before its next snapshot.
func TestPlan_cutOfExpandedWhileRead(t *testing.T) {
	r := newRig(newGroup(t))
	r.volume("vol", 8)
	r.cut("vol", "s1", 8)
	read := situation{read: []string{"s1"}}
	r.converge("the snapshot is read", read)
	r.grow("vol", 2)
	r.cut("vol", "s2", 8)
	r.expect("cut", r.converge("cut", read),
		"load vol-real: 0 65536 linear 0:0 2048; 65536 16384 linear 0:0 133120", "suspend vol-real", "resume vol-real",
		"create s2-cow", "load s2-cow: 0 65536 linear 0:0 149504", "resume s2-cow",
		"create s2", "load s2: 0 81920 snapshot <vol-real> <s2-cow> P 128", "resume s2",
		"load s1: 0 65536 snapshot <s2> <s1-cow> P 128", "suspend s1", "resume s1")
}

// TestPlan_fork: the plans for a fork cover its start, its windows, and its end as an
// ordinary volume.
func TestPlan_fork(t *testing.T) {
	r := newRig(newGroup(t))
	r.volume("vol", 8)
	r.cut("vol", "s1", 8)
	r.fork("copy", "s1", 8, "0")
	both := situation{active: []string{"copy"}}
	r.expect("fork up", r.converge("fork up", both),
		"create vol-real", "load vol-real: 0 65536 linear 0:0 2048", "resume vol-real",
		"create s1-cow", "load s1-cow: 0 65536 linear 0:0 67584", "resume s1-cow",
		"create s1", "load s1: 0 65536 snapshot <vol-real> <s1-cow> P 128", "resume s1",
		"create fork--copy-cow", "load fork--copy-cow: 0 8192 linear 0:0 198656", "resume fork--copy-cow",
		"create copy-fork", "load copy-fork: 0 65536 snapshot <s1> <fork--copy-cow> PO 128", "resume copy-fork",
		"create copy", "load copy: 0 65536 linear <copy-fork> 0", "resume copy")
	id := r.VolumeByLV("copy").LV.ID
	both.running.windows = map[lvm2.ID]window{id: {layerWindow0, catalog.Span{Start: 0, Length: 8192}}}
	r.expect("first window", r.converge("first window", both),
		"create copy-window0", "load copy-window0: 0 8192 mirror core 1 4096 2 <copy-fork> 0 0:0 133120 1 handle_errors",
		"load copy: 0 8192 linear <copy-window0> 0; 8192 57344 linear <copy-fork> 8192",
		"suspend copy", "resume copy-window0", "resume copy")
	c := r.VG.LV("copy").Clone()
	c.Tags = catalog.SetTag(c.Tags, "hydrated", "8192")
	r.check(r.Put(c))
	both.running.windows[id] = window{layerWindow1, catalog.Span{Start: 8192, Length: 8192}}
	both.running.copied = map[lvm2.ID]string{id: layerWindow0}
	r.expect("next window", r.converge("next window", both),
		"create copy-window1", "load copy-window1: 0 8192 mirror core 1 4096 2 <copy-fork> 8192 0:0 141312 1 handle_errors",
		"load copy: 0 8192 linear 0:0 133120; 8192 8192 linear <copy-window1> 0; 16384 49152 linear <copy-fork> 16384",
		"suspend copy", "resume copy-window1", "resume copy", "remove copy-window0")
	both.running = running{}
	left := r.copy()
	r.expect("a former process left the window", left.converge("left", both),
		"load copy-window1: 0 8192 linear <copy-fork> 8192", "suspend copy-window1 without a flush", "resume copy-window1",
		"load copy: 0 8192 linear 0:0 133120; 8192 57344 linear <copy-fork> 8192", "suspend copy", "resume copy", "remove copy-window1")
	c = r.VG.LV("copy").Clone()
	c.Tags = catalog.DropTags(c.Tags, "copy", "hydrated")
	r.check(r.Put(c))
	r.check(r.Discard(r.VG.LV("fork-copy")))
	r.opens([]string{"copy"})
	alone := r.paperGroup.family("copy")
	r.expect("hydrated", r.steps(r.view().want(alone, r.inUseBy([]string{"copy"}), running{copied: map[lvm2.ID]string{id: layerWindow1}}, r.view().split(r.kernel)["copy"]).plan(alone, r.view().split(r.kernel)["copy"])),
		"load copy: 0 65536 linear 0:0 133120", "suspend copy", "resume copy",
		"remove copy-window1", "remove copy-fork", "remove fork--copy-cow")
}

// TestPlan_publishedReadOnly: a volume's own device that was made read-only for its
// users still gets a writable table, and so does a frozen store that was live.
func TestPlan_publishedReadOnly(t *testing.T) {
	r := newRig(newGroup(t))
	r.volume("vol", 8)
	both := situation{active: []string{"vol"}}
	r.converge("activation", both)
	top := r.kernel[r.view().topDevice(r.VolumeByLV("vol").LV).uuid]
	loads := func(what string, d device) {
		t.Helper()
		top.ReadOnly = true
		var loaded []bool
		for _, s := range r.plan(both) {
			if s.do == stepLoad && s.uuid == d.uuid {
				loaded = append(loaded, s.readOnly)
			}
		}
		if !slices.Equal(loaded, []bool{false}) {
			t.Errorf("%s: the tables of %s are loaded read-only: %v, want one that is writable", what, d.name, loaded)
		}
		r.converge(what, both)
	}
	own := r.view().topDevice(r.VolumeByLV("vol").LV)
	r.cut("vol", "s1", 8)
	loads("first cut", own)
	r.grow("vol", 2)
	loads("expand", own)
	both.read = []string{"s1"}
	r.converge("read", both)
	r.cut("vol", "s2", 8)
	r.converge("next cut", both)
	r.grow("s1", 1)
	loads("a frozen store that was live", r.view().cowDevice(r.Snapshots.Get("s1").LV))
}

// TestPlan_heldDevices: a held device stays suspended; all other suspended devices are
// resumed, the lowest first.
func TestPlan_heldDevices(t *testing.T) {
	r := newRig(newGroup(t))
	r.volume("vol", 8)
	r.cut("vol", "s1", 8)
	active := situation{active: []string{"vol"}}
	r.converge("activation", active)
	top := r.kernel[r.view().topDevice(r.VolumeByLV("vol").LV).uuid]
	for _, d := range []*kernelDevice{top, r.kernel.at(r.VG.ID, r.VG.LV("s1"), ""), r.kernel.at(r.VG.ID, r.VG.LV("vol"), layerReal)} {
		d.Suspended = true
	}
	left := r.copy()
	r.expect("left", left.converge("left", active), "resume vol-real", "resume s1", "resume vol")
	active.running.held = map[string]bool{top.uuid: true}
	r.expect("held", r.converge("held", active), "resume vol-real", "resume s1")
}

// TestPlan_heldFork: a fork whose writers are held gets the tables of the next window,
// but is not resumed.
func TestPlan_heldFork(t *testing.T) {
	r := newRig(newGroup(t))
	r.volume("vol", 8)
	r.cut("vol", "s1", 8)
	r.fork("copy", "s1", 8, "0")
	both := situation{active: []string{"copy"}}
	o := r.VolumeByLV("copy")
	both.running.windows = map[lvm2.ID]window{o.LV.ID: {layerWindow0, catalog.Span{Start: 0, Length: 8192}}}
	r.converge("first window", both)
	top := r.kernel[r.view().topDevice(o.LV).uuid]
	top.Suspended = true
	both.running.held = map[string]bool{top.uuid: true}
	c := r.VG.LV("copy").Clone()
	c.Tags = catalog.SetTag(c.Tags, "hydrated", "8192")
	r.check(r.Put(c))
	both.running.windows[o.LV.ID] = window{layerWindow1, catalog.Span{Start: 8192, Length: 8192}}
	both.running.copied = map[lvm2.ID]string{o.LV.ID: layerWindow0}
	r.expect("next window", r.converge("next window", both),
		"create copy-window1", "load copy-window1: 0 8192 mirror core 1 4096 2 <copy-fork> 8192 0:0 141312 1 handle_errors",
		"load copy: 0 8192 linear 0:0 133120; 8192 8192 linear <copy-window1> 0; 16384 49152 linear <copy-fork> 16384",
		"resume copy-window1")
	both.running.held = nil
	r.expect("the writers continue", r.converge("the writers continue", both), "clear copy",
		"load copy: 0 8192 linear 0:0 133120; 8192 8192 linear <copy-window1> 0; 16384 49152 linear <copy-fork> 16384",
		"resume copy", "remove copy-window0")
}

// TestPlan_windowLeftElsewhere: a mirror that moves to another part of the volume does
// not begin to copy before the volume is suspended.
func TestPlan_windowLeftElsewhere(t *testing.T) {
	r := newRig(newGroup(t))
	r.volume("vol", 8)
	r.cut("vol", "s1", 8)
	r.fork("copy", "s1", 8, "0")
	id := r.VolumeByLV("copy").LV.ID
	both := situation{active: []string{"copy"}}
	both.running.windows = map[lvm2.ID]window{id: {layerWindow0, catalog.Span{Start: 0, Length: 8192}}}
	r.converge("a window", both)
	both.running.windows[id] = window{layerWindow0, catalog.Span{Start: 8192, Length: 8192}}
	r.expect("in use", r.converge("in use", both),
		"load copy-window0: 0 8192 mirror core 1 4096 2 <copy-fork> 8192 0:0 141312 1 handle_errors",
		"load copy: 0 8192 linear <copy-fork> 0; 8192 8192 linear <copy-window0> 0; 16384 49152 linear <copy-fork> 16384",
		"suspend copy", "resume copy-window0", "resume copy")
}

// TestPlan_committedWindow: a hydrated window stays only while all writes go through
// its mirror. It is never copied again, because the copy would overwrite newer writes.
func TestPlan_committedWindow(t *testing.T) {
	committed := func(then func(r *rig, s *situation, o *catalog.Volume)) (*rig, situation) {
		r := newRig(newGroup(t))
		r.volume("vol", 8)
		r.cut("vol", "s1", 8)
		r.fork("copy", "s1", 8, "0")
		o := r.VolumeByLV("copy")
		both := situation{active: []string{"copy"}}
		both.running.windows = map[lvm2.ID]window{o.LV.ID: {layerWindow0, catalog.Span{Start: 0, Length: 8192}}}
		r.converge("a window", both)
		c := o.LV.Clone()
		c.Tags = catalog.SetTag(c.Tags, "hydrated", "8192")
		r.check(r.Put(c))
		both.running.copied = map[lvm2.ID]string{o.LV.ID: layerWindow0}
		then(r, &both, r.VolumeByLV("copy"))
		return r, both
	}
	next := func(r *rig, s *situation, o *catalog.Volume) {
		former := s.running.windows[o.LV.ID]
		s.running.windows[o.LV.ID] = window{layerWindow1, catalog.Span{Start: 8192, Length: 8192}}
		r.converge("next window", *s)
		s.running.windows[o.LV.ID] = former
	}
	outside := []string{
		"load copy-window1: 0 8192 linear <copy-fork> 8192", "suspend copy-window1 without a flush", "resume copy-window1",
		"load copy: 0 8192 linear 0:0 133120; 8192 57344 linear <copy-fork> 8192", "suspend copy", "resume copy",
	}
	const own = "load copy: 0 8192 linear 0:0 133120; 8192 57344 linear <copy-fork> 8192"
	for _, x := range []struct {
		what string
		then func(r *rig, s *situation, o *catalog.Volume)
		want []string
	}{
		{"the volume writes through its mirror", func(*rig, *situation, *catalog.Volume) {}, nil},
		{"its mirror is gone", next, append(outside[:6:6], "remove copy-window1")},
		{"the volume bypasses its mirror", func(r *rig, s *situation, o *catalog.Volume) {
			left := *r.kernel.at(r.VG.ID, o.LV, layerWindow0)
			next(r, s, o)
			r.kernel[left.uuid] = &left
		}, append(outside[:6:6], "remove copy-window0", "remove copy-window1")},
		{"the volume has no device", func(r *rig, s *situation, o *catalog.Volume) {
			s.active = nil
			delete(r.kernel, r.view().topDevice(o.LV).uuid)
		}, []string{"remove copy-window0"}},
		{"its mirror was removed by force", func(r *rig, s *situation, o *catalog.Volume) {
			r.kernel.at(r.VG.ID, o.LV, layerWindow0).table = dm.Table{{Length: 8192, Target: dm.ErrorTarget{}}}
		}, []string{own, "suspend copy", "resume copy", "remove copy-window0"}},
		{"its mirror copies to another place", func(r *rig, s *situation, o *catalog.Volume) {
			x := r.kernel.at(r.VG.ID, o.LV, layerWindow0)
			m := x.table[0].Target.(dm.Mirror)
			m.Legs = []dm.Area{m.Legs[0], {Device: m.Legs[1].Device, Offset: m.Legs[1].Offset + 8}}
			x.table = dm.Table{{Length: 8192, Target: m}}
		}, []string{own, "suspend copy", "resume copy", "remove copy-window0"}},
		{"the volume is held, and will bypass its mirror", func(r *rig, s *situation, o *catalog.Volume) {
			top := r.kernel[r.view().topDevice(o.LV).uuid]
			top.Suspended, s.running.held = true, map[string]bool{top.uuid: true}
			former := s.running.windows
			s.running.windows = nil
			r.finish("without a window", *s)
			s.running.windows = former
		}, nil},
	} {
		t.Run(x.what, func(t *testing.T) {
			r, s := committed(x.then)
			r.expect(x.what, r.converge(x.what, s), x.want...)
		})
	}
}

// TestPlan_stuckVolume: a volume that cannot be brought in line stays as it is, with
// the volumes that read through it, except for suspended devices. Other volumes
// follow.
func TestPlan_stuckVolume(t *testing.T) {
	r := newRig(newGroup(t))
	r.volume("vol", 8)
	r.cut("vol", "s1", 8)
	r.fork("copy", "s1", 8, "0")
	r.volume("other", 8)
	s := situation{active: []string{"vol", "copy"}}
	r.converge("activation", s)
	r.cut("vol", "s2", 8)
	r.cut("copy", "s3", 8)
	vol := r.VolumeByLV("vol").LV
	top := r.kernel[r.view().topDevice(vol).uuid]
	top.Suspended, top.Loaded, top.loaded = true, true, top.table
	s.running.stuck = map[lvm2.ID]error{vol.ID: ErrInUse}
	r.expect("stuck", r.converge("stuck", s), "clear vol", "resume vol")
	s.running.stuck = map[lvm2.ID]error{r.VolumeByLV("copy").LV.ID: ErrInUse}
	if got := r.converge("the fork is stuck", s); len(got) == 0 || strings.Contains(fmt.Sprint(got), "copy") {
		t.Errorf("with a stuck fork, the plan is %v", got)
	}
}

// TestPlan_missingStore: without the device of a live store, neither the snapshot nor
// the volume's own device is made.
func TestPlan_missingStore(t *testing.T) {
	r := newRig(newGroup(t))
	r.volume("vol", 8)
	r.cut("vol", "s1", 8)
	family := r.paperGroup.family("vol")
	w := r.view().want(family, r.inUseBy([]string{"vol"}), running{}, r.kernel)
	cow := r.view().cowDevice(r.Snapshots.Get("s1").LV)
	w.devices, w.kept[cow.uuid] = slices.DeleteFunc(w.devices, func(d wanted) bool { return d.uuid == cow.uuid }), ErrUnavailable
	r.expect("its disk is missing", r.steps(w.plan(family, r.kernel)),
		"create vol-real", "load vol-real: 0 65536 linear 0:0 2048", "resume vol-real")
}

// TestPlan_reader: an active reader has the devices of its snapshot. They are removed
// with the reader's device.
func TestPlan_reader(t *testing.T) {
	r := newRig(newGroup(t))
	r.volume("vol", 8)
	r.cut("vol", "s1", 8)
	r.cut("vol", "s2", 8)
	r.reader("show", "s1")
	r.converge("activation", situation{active: []string{"vol"}})
	r.expect("reader up", r.converge("reader up", situation{active: []string{"vol", "show"}}),
		"create s1-cow", "load s1-cow: 0 65536 linear 0:0 67584", "resume s1-cow",
		"create s1", "load s1: 0 65536 snapshot <s2> <s1-cow> P 128", "resume s1",
		"create show", "load show: 0 65536 linear <s1> 0", "resume show")
	r.expect("reader down", r.converge("reader down", situation{active: []string{"vol"}}), "remove show", "remove s1", "remove s1-cow")
}
