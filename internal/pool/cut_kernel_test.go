//go:build kernel

package pool

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// cutKinds are the calls that cut a volume. Each makes a snapshot or volume with the name
// "copy", and returns a volume that shows its content.
var cutKinds = map[string]func(ctx context.Context, p *Pool, of Volume) (string, error){
	"snapshot": func(ctx context.Context, p *Pool, of Volume) (string, error) {
		s, err := p.CreateSnapshot(ctx, "copy", of.LV)
		if err != nil {
			return "", err
		}
		c, err := p.CreateVolume(ctx, VolumeSpec{Name: "of-" + s.Name, Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: s.LV}})
		return c.LV, err
	},
	"clone":     cloned(VolumeSpec{}),
	"reader":    cloned(VolumeSpec{ReadOnly: true}),
	"transient": cloned(VolumeSpec{Transient: true}),
}

func cloned(spec VolumeSpec) func(ctx context.Context, p *Pool, of Volume) (string, error) {
	return func(ctx context.Context, p *Pool, of Volume) (string, error) {
		spec.Name, spec.Mode, spec.Source = "copy", Block, Source{Kind: FromVolume, LV: of.LV}
		c, err := p.CreateVolume(ctx, spec)
		return c.LV, err
	}
}

// copyReported reports whether the pool lists a snapshot or volume with the name "copy".
func copyReported(t *testing.T, p *Pool) bool {
	t.Helper()
	for _, s := range must(p.Snapshots(context.Background()))(t) {
		if s.Name == "copy" {
			return true
		}
	}
	for _, v := range must(p.Volumes(context.Background()))(t) {
		if v.Name == "copy" {
			return true
		}
	}
	return false
}

// checkCopy checks that a volume begins with 4096 bytes b, and deactivates it.
func checkCopy(t *testing.T, p *Pool, what, lv string, b byte) {
	t.Helper()
	if got := readDevice(t, must(p.Activate(context.Background(), lv))(t), 4096); !bytes.Equal(got, bytes.Repeat([]byte{b}, 4096)) {
		t.Errorf("%s: the volume reads %q, want %q", what, got[:4], b)
	}
	ok(t, p.Deactivate(context.Background(), lv))
}

// halfCut commits a cut of a volume in use, and makes the new layer's devices if prepare is set.
func halfCut(t *testing.T, p *Pool, lv, name string, prepare bool) *cutting {
	t.Helper()
	c := &cutting{Pool: p, lv: lv, frozen: make(chan froze, 1)}
	ok(t, p.do(context.Background(), &change{what: "half a cut", edit: func(e *edit) error {
		c.foreign = p.foreign.Load()
		l, err := p.cut(e, e.VolumeByLV(lv), name)
		if err == nil {
			c.done.Layer = l.ID
		}
		return err
	}, act: func(ctx context.Context, w *view) (err error) {
		if prepare {
			c.ready, err = p.prepare(ctx, w, lv)
		}
		return err
	}}))
	return c
}

// cutLate freezes the volume of half a cut, and makes the cut as after a long freeze. It calls
// meanwhile, unless it is nil, while the volume is frozen.
func (c *cutting) cutLate(ctx context.Context, meanwhile func()) error {
	f, err := c.freeze(ctx, c.lv)
	if err == nil && meanwhile != nil {
		meanwhile()
	}
	c.frozen <- froze{frozen: f, err: err}
	return c.end("cut", nil)
}

// TestCut_refusedByTheKernel: a cut that the kernel refused is not reported and does
// not happen later. A repeated call cuts the content of its own time.
func TestCut_refusedByTheKernel(t *testing.T) {
	for kind, cut := range cutKinds {
		t.Run(kind, func(t *testing.T) {
			ctx := context.Background()
			p := testPool(t, nil)
			v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 16 * size.MiB, Mode: Block}))(t)
			path := must(p.Activate(ctx, v.LV))(t)
			write := func(b byte) { writeDevice(t, path, 0, bytes.Repeat([]byte{b}, 4096)) }
			write('0')
			old := must(p.CreateSnapshot(ctx, "old", v.LV))(t)
			write('A')
			inTheWay := lvm2.DMName(p.vgName, map[bool]string{true: "copy", false: "clone-of-base"}[kind == "snapshot"], layerCOW)
			must(p.dm.Create(inTheWay, ""))(t)
			if _, err := cut(ctx, p, v); err == nil {
				t.Fatal("the cut succeeded, although another device has the name of its store")
			}
			if copyReported(t, p) {
				t.Error("the cut failed, but its snapshot or clone is reported")
			}
			ok(t, p.dm.Remove(inTheWay, 0))
			write('B')
			between := time.Now()
			lv := must(cut(ctx, p, v))(t)
			write('C')
			checkCopy(t, p, "asked for again", lv, 'B')
			if kind == "transient" { // its device stays until it is deleted
				ok(t, p.DeleteVolume(ctx, lv))
			}
			if kind == "snapshot" {
				if s := must(p.Snapshot(ctx, must(p.latest())(t).Snapshots.Get("copy").LV.Name))(t); s.Created.Before(between) {
					t.Errorf("the snapshot's time is %v, but it was cut after %v", s.Created, between)
				}
			}
			checkCopy(t, p, "the snapshot before", must(p.CreateVolume(ctx, VolumeSpec{Name: "o", Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: old.LV}}))(t).LV, '0')
			ok(t, p.Deactivate(ctx, v.LV))
		})
	}
}

// TestCut_killedAnywhere: after the process is killed anywhere in a cut, the next
// process reports no snapshot or clone, and a repeated call cuts the content of its own
// time. It resumes the former layer's store, if the brake held it for a growth ("held").
func TestCut_killedAnywhere(t *testing.T) {
	for kind, cut := range cutKinds {
		if kind == "reader" || kind == "transient" {
			continue // the same as for a clone, until they get their layer
		}
		for _, at := range []string{"committed", "prepared", "held", "frozen", "cut"} {
			t.Run(kind+"/"+at, func(t *testing.T) {
				ctx := context.Background()
				p := testPool(t, nil)
				v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 16 * size.MiB, Mode: Block}))(t)
				path := must(p.Activate(ctx, v.LV))(t)
				write := func(b byte) { writeDevice(t, path, 0, bytes.Repeat([]byte{b}, 4096)) }
				write('0')
				old := must(p.CreateSnapshot(ctx, "old", v.LV))(t)
				write('A')
				must(p.keys.lock(ctx, lvKey(v.LV)))(t) // for good
				c := halfCut(t, p, v.LV, "copy", at != "committed")
				write('X')
				if at == "frozen" || at == "cut" {
					f := must(p.freeze(ctx, v.LV))(t)
					f.limit.Stop()
					if at == "cut" {
						ok(t, p.do(ctx, &change{what: "the rest of a cut", act: func(ctx context.Context, w *view) error {
							return f.carryOut(ctx, func(ctx context.Context) error { return c.ready.carryOut(ctx, p, w, w.VolumeByLV(v.LV)) })
						}}))
					}
				}
				store := must(p.latest())(t).cowDevice(must(p.latest())(t).VG.LV(old.LV))
				if at == "held" {
					ok(t, p.suspend(ctx, store))
				}
				ok(t, p.Close())
				p = openPool(t, p.config)
				if copyReported(t, p) {
					t.Error("the snapshot or clone of an interrupted cut is reported")
				}
				if info := must(p.find(store))(t); info != nil && info.Suspended {
					t.Error("the former layer's store is still suspended")
				}
				write('B')
				lv := must(cut(ctx, p, v))(t)
				write('C')
				checkCopy(t, p, "asked for again", lv, 'B')
				checkCopy(t, p, "the snapshot before", must(p.CreateVolume(ctx, VolumeSpec{Name: "o", Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: old.LV}}))(t).LV, '0')
				ok(t, p.Deactivate(ctx, v.LV))
			})
		}
	}
}

// TestCut_withdrawn: after a cut that failed before the kernel made it, the group is as it was
// before, also if the former layer's store has grown meanwhile, and the volume's snapshots keep
// their content. A cut that the kernel may have made is never taken back.
func TestCut_withdrawn(t *testing.T) {
	for _, snapshots := range []int{0, 1} {
		for _, at := range []string{"committed", "prepared", "cut"} {
			t.Run(fmt.Sprintf("%d/%s", snapshots, at), func(t *testing.T) {
				ctx := context.Background()
				p := testPool(t, nil)
				v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 64 * size.MiB, Mode: Block}))(t)
				path := must(p.Activate(ctx, v.LV))(t)
				write := func(b byte) { writeDevice(t, path, 0, bytes.Repeat([]byte{b}, 32<<20)) }
				write('0')
				if snapshots > 0 {
					must(p.CreateSnapshot(ctx, "old", v.LV))(t)
				}
				release := must(p.keys.lock(ctx, lvKey(v.LV)))(t)
				before := must(p.latest())(t).VolumeByLV(v.LV)
				c := halfCut(t, p, v.LV, "copy", at != "committed")
				write('A') // more than the first store holds
				if at == "cut" {
					f := must(p.freeze(ctx, v.LV))(t)
					ok(t, p.do(ctx, &change{what: "the rest of a cut", act: func(ctx context.Context, w *view) error {
						return f.carryOut(ctx, func(ctx context.Context) error { return c.ready.carryOut(ctx, p, w, w.VolumeByLV(v.LV)) })
					}}))
					f.release()
				}
				p.withdraw(ctx, c.done.Layer, v.LV, ErrFreeze)
				release()
				write('B')
				after := must(p.latest())(t).VolumeByLV(v.LV)
				want := snapshots
				if at == "cut" && snapshots > 0 {
					want = 2 // the older layer reads through the layer that was cut
				}
				if len(after.Layers) != want {
					t.Fatalf("there are %d layers, want %d", len(after.Layers), want)
				}
				if was, is := before.Live(), after.Live(); snapshots == 1 && at != "cut" {
					if !slices.Equal(is.LV.Tags, was.LV.Tags) || !slices.Equal(is.LV.Status, was.LV.Status) || !slices.Equal(is.LV.Flags, was.LV.Flags) || is.Snap == nil || is.Snap.Segments[0].Count != was.Snap.Segments[0].Count {
						t.Errorf("the live layer is %+v %+v, was %+v %+v", is.LV, is.Snap, was.LV, was.Snap)
					}
				}
				if n := len(settledTo(t, p, 1+3*snapshots)); n != 1+3*snapshots {
					t.Errorf("the devices are %v, want %d", devicesOf(t, p), 1+3*snapshots)
				}
				if snapshots > 0 {
					checkCopy(t, p, "the snapshot before", must(p.CreateVolume(ctx, VolumeSpec{Name: "o", Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: "old"}}))(t).LV, '0')
				}
				must(p.CreateSnapshot(ctx, "next", v.LV))(t)
				write('C')
				checkCopy(t, p, "the next snapshot", must(p.CreateVolume(ctx, VolumeSpec{Name: "n", Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: "next"}}))(t).LV, 'B')
				ok(t, p.Deactivate(ctx, v.LV))
			})
		}
	}
}

// TestUnname_namedBeforeTheCut: a snapshot that an older release named, but that the
// kernel never cut, is removed. A snapshot that was cut keeps its name.
func TestUnname_namedBeforeTheCut(t *testing.T) {
	for _, first := range []bool{true, false} {
		t.Run(map[bool]string{true: "first", false: "second"}[first], func(t *testing.T) {
			ctx := context.Background()
			p := testPool(t, nil)
			v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 16 * size.MiB, Mode: Block}))(t)
			path := must(p.Activate(ctx, v.LV))(t)
			writeDevice(t, path, 0, bytes.Repeat([]byte("A"), 4096))
			if !first {
				must(p.CreateSnapshot(ctx, "old", v.LV))(t)
			}
			must(p.keys.lock(ctx, lvKey(v.LV)))(t) // for good: the monitor would carry the cut out
			ok(t, p.do(ctx, &change{what: "a cut as of an older release", edit: func(e *edit) error {
				l, err := p.cut(e, e.VolumeByLV(v.LV), "copy")
				if err != nil {
					return err
				}
				return e.Record(catalog.CutLayer{Layer: l.ID, At: time.Now()}, "copy")
			}}))
			ok(t, p.Close())
			p = openPool(t, p.config)
			if copyReported(t, p) {
				t.Error("a snapshot that was never cut is reported")
			}
			writeDevice(t, path, 0, bytes.Repeat([]byte("B"), 4096))
			s := must(p.CreateSnapshot(ctx, "copy", v.LV))(t)
			writeDevice(t, path, 0, bytes.Repeat([]byte("C"), 4096))
			ok(t, p.Close())
			p = openPool(t, p.config)
			if again := must(p.CreateSnapshot(ctx, "copy", v.LV))(t); again != s {
				t.Errorf("after another restart the snapshot is %+v, want %+v", again, s)
			}
			checkCopy(t, p, "asked for again", must(p.CreateVolume(ctx, VolumeSpec{Name: "r", Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: s.LV}}))(t).LV, 'B')
			ok(t, p.Deactivate(ctx, v.LV))
		})
	}
}
