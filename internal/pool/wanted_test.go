package pool

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestWant_history: an active volume with snapshots has the four devices of the kernel's
// snapshot document. Older snapshots have devices only while they are read.
func TestWant_history(t *testing.T) {
	g := newGroup(t)
	g.volume("vol", 8)
	both, none := []string{"vol"}, []string(nil)
	want := func(u use) []string { return g.view().want(g.family("vol"), u, running{}, kernel{}).lines() }
	g.expect("not active", want(g.inUseBy(none)))
	g.expect("plain", want(g.inUseBy(both)), "vol: 0 65536 linear 0:0 2048")
	g.cut("vol", "s1", 1)
	four := []string{
		"vol-real: 0 65536 linear 0:0 2048",
		"s1-cow: 0 8192 linear 0:0 67584",
		"s1: 0 65536 snapshot <vol-real> <s1-cow> P 128",
		"vol: 0 65536 snapshot-origin <vol-real>",
	}
	g.expect("one snapshot", want(g.inUseBy(both)), four...)
	g.expect("one snapshot, not active", want(g.inUseBy(none)))
	g.expect("one snapshot that is read", want(g.inUseBy(none, "s1")), four[:3]...)
	g.grow("vol", 2)
	g.cut("vol", "s2", 1)
	g.cut("vol", "s3", 1)
	newest := []string{
		"vol-real: 0 65536 linear 0:0 2048; 65536 16384 linear 0:0 75776",
		"s3-cow: 0 8192 linear 0:0 100352",
		"s3: 0 81920 snapshot <vol-real> <s3-cow> P 128",
		"vol: 0 81920 snapshot-origin <vol-real>",
	}
	second := append(newest[:4:4],
		"s2-cow ro: 0 8192 linear 0:0 92160",
		"s2 ro: 0 81920 snapshot <s3> <s2-cow> P 128")
	g.expect("three snapshots", want(g.inUseBy(both)), newest...)
	g.expect("the second is read", want(g.inUseBy(both, "s2")), second...)
	g.expect("the first is read", want(g.inUseBy(both, "s1")), append(second,
		"s1-cow ro: 0 8192 linear 0:0 67584",
		"s1 ro: 0 65536 snapshot <s2> <s1-cow> P 128")...)
	fold := g.view().want(g.family("vol"), g.inUseBy(both, "s2"), running{heir: g.Snapshots.Get("s2").LV.ID}, kernel{}).lines()
	g.expect("a layer is folded into the second", fold, append(newest[:4:4],
		"s2-cow: 0 8192 linear 0:0 92160",
		"s2: 0 81920 snapshot <s3> <s2-cow> PO 128")...)
}

// TestWant_fork: a fork in use has all devices that it reads through, and the mirror of
// its window.
func TestWant_fork(t *testing.T) {
	g := newGroup(t)
	g.volume("vol", 8)
	g.cut("vol", "s1", 1)
	g.fork("copy", "s1", 10, "8192")
	source := []string{
		"vol-real: 0 65536 linear 0:0 2048",
		"s1-cow: 0 8192 linear 0:0 67584",
		"s1: 0 65536 snapshot <vol-real> <s1-cow> P 128",
	}
	below := append(source[:3:3],
		"fork--copy-cow: 0 8192 linear 0:0 157696",
		"copy-fork: 0 65536 snapshot <s1> <fork--copy-cow> PO 128")
	want := func(u use, r running) []string { return g.view().want(g.family("copy"), u, r, kernel{}).lines() }
	g.expect("not in use", want(g.inUseBy(nil), running{}))
	g.expect("active", want(g.inUseBy([]string{"copy"}), running{}), append(below[:5:5],
		"copy: 0 8192 linear 0:0 75776; 8192 57344 linear <copy-fork> 8192; 65536 16384 linear 0:0 141312")...)
	r := running{windows: map[lvm2.ID]window{g.VolumeByLV("copy").LV.ID: {layerWindow0, catalog.Span{Start: 8192, Length: 16384}}}}
	copied := append(below[:5:5], "copy-window0: 0 16384 mirror core 1 4096 2 <copy-fork> 8192 0:0 83968 1 handle_errors")
	g.expect("hydrated while it is active", want(g.inUseBy([]string{"copy"}), r), append(copied[:6:6],
		"copy: 0 8192 linear 0:0 75776; 8192 16384 linear <copy-window0> 0; 24576 40960 linear <copy-fork> 24576; 65536 16384 linear 0:0 141312")...)
	g.expect("hydrated while it is not active", want(g.inUseBy(nil), r), copied...)
	g.cut("copy", "s2", 1)
	g.expect("hydrated, with a snapshot", want(g.inUseBy(nil), r), copied...)
	g.expect("its snapshot is read", want(g.inUseBy(nil, "s2"), running{}), append(below[:5:5],
		"copy-real: 0 8192 linear 0:0 75776; 8192 57344 linear <copy-fork> 8192; 65536 16384 linear 0:0 141312",
		"s2-cow: 0 8192 linear 0:0 165888",
		"s2: 0 81920 snapshot <copy-real> <s2-cow> P 128")...)
}

// TestWant_readers: a volume that shows a snapshot has the snapshot's devices. If the
// snapshot is lost, its devices stay as they are.
func TestWant_readers(t *testing.T) {
	g := newGroup(t)
	g.volume("vol", 8)
	g.cut("vol", "s1", 1)
	g.cut("vol", "s2", 1)
	g.reader("show", "s1")
	g.reader("scratch", "s2", catalog.Tag("transient"), catalog.Tag("chunk", "128"))
	below := []string{
		"vol-real: 0 65536 linear 0:0 2048",
		"s2-cow: 0 8192 linear 0:0 75776",
		"s2: 0 65536 snapshot <vol-real> <s2-cow> P 128",
	}
	want := func(u use) *wantedSet { return g.view().want(g.family("vol"), u, running{}, kernel{}) }
	g.expect("a transient volume", want(g.inUseBy([]string{"scratch"})).lines(), append(below[:3:3],
		"scratch-cow: 0 65536 linear 0:0 83968",
		"scratch: 0 65536 snapshot <s2> <scratch-cow> N 128")...)
	g.expect("a reader", want(g.inUseBy([]string{"show"})).lines(), append(below[:3:3],
		"s1-cow ro: 0 8192 linear 0:0 67584",
		"s1 ro: 0 65536 snapshot <s2> <s1-cow> P 128",
		"show ro: 0 65536 linear <s1> 0")...)
	g.check(g.Lose(g.VolumeByLV("vol"), g.Layers.Get(g.Snapshots.Get("s1").LV.ID)))
	w := want(g.inUseBy([]string{"vol", "show"}))
	g.expect("its snapshot is lost", w.lines(), append(below, "vol: 0 65536 snapshot-origin <vol-real>")...)
	for _, d := range []device{w.topDevice(g.VolumeByLV("show").LV), w.snapDevice(g.Snapshots.Get("s1").LV), w.cowDevice(g.Snapshots.Get("s1").LV)} {
		if w.kept[d.uuid] == nil {
			t.Errorf("the device %s of a lost snapshot is not kept", d.name)
		}
	}
}

// TestWant_blocksOpenAlone: only the blocks of a volume may be open, while it is zeroed
// before its first use. Its snapshot then needs no device.
func TestWant_blocksOpenAlone(t *testing.T) {
	g := newGroup(t)
	g.volume("vol", 8)
	g.cut("vol", "s1", 1)
	r := newRig(g)
	d := g.view().realDevice(g.VG.LV("vol"))
	if err := r.apply(step{do: stepCreate, device: d}); err != nil {
		t.Fatal(err)
	}
	r.opens([]string{"vol-real"})
	u := g.view().inUse(g.family("vol"), r.kernel, true)
	if live := g.Snapshots.Get("s1").LV.ID; u.read[live] {
		t.Error("the snapshot counts as read")
	}
	if !u.content[g.VG.LV("vol").ID] {
		t.Error("the blocks do not count as in use")
	}
}
