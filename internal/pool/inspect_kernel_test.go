//go:build kernel

package pool

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2/lvm2test"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// history makes a volume with three snapshots, and deletes the middle one. It also
// makes a second, inactive volume. The chunk size differs between the cuts.
func history(t *testing.T, p *Pool) (path string) {
	t.Helper()
	ctx := context.Background()
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 64 * size.MiB, Mode: Block}))(t)
	must(p.CreateVolume(ctx, VolumeSpec{Name: "idle", Size: 16 * size.MiB, Mode: Filesystem, FSType: "ext4"}))(t)
	path = must(p.Activate(ctx, v.LV))(t)
	for i, name := range []string{"s1", "s2", "s3"} {
		must(p.CreateSnapshot(ctx, name, v.LV))(t)
		for off := range int64(40) {
			writeDevice(t, path, off<<20, bytes.Repeat([]byte{byte(i + 1)}, 4096))
		}
	}
	ok(t, p.DeleteSnapshot(ctx, "s2"))
	return path
}

// found returns the findings as "reason where".
func found(t *testing.T, c Config) []string {
	t.Helper()
	out := []string{}
	for _, f := range must(Verify(t.Context(), c, Options{}))(t).Findings {
		t.Logf("%s %s: %s; %s", f.Reason, f.Where, f.What, f.Do)
		if f.What == "" || f.Do == "" {
			t.Errorf("%+v says too little", f)
		}
		out = append(out, f.Reason+" "+f.Where)
	}
	return out
}

// viewOf reads the metadata of a pool that is not open.
func viewOf(t *testing.T, c Config) (v *view) {
	t.Helper()
	i := must(newInspector(t.Context(), c, Options{}, lvm2.FindVGReadOnly))(t)
	defer i.close()
	ok(t, i.locked(t.Context(), func(now *view) error { v = now; return nil }))
	return v
}

// TestInspect_history inspects and verifies a history of layers, with the pool open
// and closed.
func TestInspect_history(t *testing.T) {
	p := testPool(t, nil)
	history(t, p)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		v := must(p.latest())(t)
		if o := v.VolumeByLV("base"); o.Layers[0].Trimmed && o.Layers[1].Trimmed && len(v.Trash) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("frozen stores were not trimmed")
		}
	}
	for _, state := range []string{"open", "closed"} {
		i := must(Inspect(t.Context(), p.config, Options{}))(t)
		if len(i.Volumes) != 2 || i.Volumes[0].LV != "base" || i.Volumes[1].Active {
			t.Fatalf("%s: %+v", state, i.Volumes)
		}
		if sum := i.Free + i.Blocks + i.Stores + i.Trash; i.Foreign != 0 || sum != i.Total || i.Blocks != 80*size.MiB {
			t.Errorf("%s: %+v", state, i.PoolState)
		}
		b := i.Volumes[0]
		if !b.Active || b.Name != "base" || b.State != StateReady || len(b.Devices) != 4 || len(b.Layers) != 3 {
			t.Fatalf("%s: %+v", state, b)
		}
		for k, want := range []string{"s3 live 1", " inner 2", "s1 frozen 3"} {
			l := b.Layers[k]
			if got := fmt.Sprintf("%s %s %d", l.Name, l.State, l.Position); got != want || l.Size != 64*size.MiB || l.Volume != "base" {
				t.Errorf("%s: layer %+v, want %s", state, l, want)
			}
			// A header, an area and 40 chunks of 16 KiB.
			if l.Used == nil || *l.Used != 42*16*size.KiB {
				t.Errorf("%s: layer %s uses %v", state, l.LV, l.Used)
			}
		}
		nothingPlanned(t, p)
		var back Inspection
		text := must(json.Marshal(i))(t)
		if err := json.Unmarshal(text, &back); err != nil || len(back.Volumes) != 2 || back.Total != i.Total {
			t.Errorf("%s: %s: %v", state, text, err)
		}
		v := must(Verify(t.Context(), p.config, Options{}))(t)
		if len(v.Findings) != 0 || len(v.Unread) != 2 { // the frozen stores are not active
			t.Errorf("%s: %+v", state, v)
		}
		ok(t, p.Close())
	}
}

// TestInspect_readOldest inspects a pool while somebody reads the oldest snapshot,
// before and after a cut that puts all snapshots below a new layer.
func TestInspect_readOldest(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	path := history(t, p)
	alone := func(what string, act func(context.Context, *view) error) {
		t.Helper()
		release := must(p.keys.lock(ctx, lvKey("base")))(t) // keeps the trimming of stores away
		defer release()
		ok(t, p.do(ctx, &change{what: what, act: act}))
	}
	var f *os.File
	alone("open a snapshot", func(ctx context.Context, v *view) error {
		l := v.SnapshotByLV("s1")
		dev, err := p.chainUp(ctx, v, v.Volumes.Get(l.Of), l)
		if err == nil {
			f, err = os.Open(dev)
		}
		return err
	})
	defer func() {
		f.Close()
		alone("close it", func(ctx context.Context, v *view) error {
			return p.converge(ctx, v, "base")
		})
	}()
	for n := 3; n <= 4; n++ {
		v := must(Verify(ctx, p.config, Options{}))(t)
		if len(v.Findings) != 0 || len(v.Unread) != 0 {
			t.Errorf("%d layers: %+v", n, v)
		}
		nothingPlanned(t, p)
		b := must(Inspect(ctx, p.config, Options{}))(t).Volumes[0]
		if len(b.Devices) != 2+2*n || len(b.Layers) != n || !b.Layers[n-1].Active {
			t.Errorf("%d layers: %+v", n, b)
		}
		writeDevice(t, path, 50<<20, []byte(strings.Repeat("x", 4096)))
		if n == 3 {
			must(p.CreateSnapshot(ctx, "s4", "base"))(t)
		}
	}
}

// TestVerify_busyDriver verifies repeatedly while the driver cuts and deletes. The
// steps in between are no findings.
func TestVerify_busyDriver(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	path := history(t, p)
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			name := fmt.Sprintf("busy%d", i)
			writeDevice(t, path, int64(i%64)<<20, bytes.Repeat([]byte{byte(i)}, 4096))
			if _, err := p.CreateSnapshot(ctx, name, "base"); err != nil {
				t.Error(err)
			}
			if i%3 == 2 {
				r, err := p.CreateVolume(ctx, VolumeSpec{Name: "r" + name, Mode: Block, Source: Source{Kind: FromSnapshot, LV: "s1"}})
				if err == nil {
					err = p.DeleteVolume(ctx, r.LV)
				}
				// Layers may come faster than they are folded: then s1 lies too deep.
				if err != nil && !errors.Is(err, ErrPrecondition) {
					t.Error(err)
				}
			}
			if err := p.DeleteSnapshot(ctx, name); err != nil {
				t.Error(err)
			}
		}
	}()
	for range 8 {
		if f := found(t, p.config); len(f) != 0 {
			t.Errorf("found %v", f)
		}
		must(Inspect(t.Context(), p.config, Options{}))(t)
	}
	close(stop)
	<-ended
}

// TestVerify_brokenDevices breaks devices, and expects a finding for each. The pool
// is closed, so that nobody repairs them.
func TestVerify_brokenDevices(t *testing.T) {
	p := testPool(t, nil)
	path := history(t, p)
	waitIdle(t, p)
	ok(t, p.Close())
	c, vg := p.config, p.config.VolumeGroup
	client := must(dm.Open())(t)
	defer client.Close()
	uuid := func(name string) string {
		for _, e := range must(client.List())(t) {
			if e.Name == name {
				return e.UUID
			}
		}
		t.Fatalf("no device %s", name)
		return ""
	}
	fake := func(name, uuid string) func() {
		must(client.Create(name, uuid))(t)
		ok(t, client.Load(name, dm.Table{{Length: 8, Target: dm.Zero{}}}, false))
		ok(t, client.Resume(name, dm.UdevDisableOther))
		return func() { ok(t, client.Remove(name, 0)) }
	}
	swap := func(name string, change func(dm.Table), readOnly bool) func() {
		was := must(client.Table(name))(t)
		now := slices.Clone(was)
		change(now)
		put := func(table dm.Table, ro bool) {
			ok(t, client.Load(name, table, ro))
			ok(t, client.Suspend(context.Background(), name, dm.SuspendOptions{}))
			ok(t, client.Resume(name, dm.UdevDisableOther))
		}
		put(now, readOnly)
		return func() { put(was, false) }
	}
	spoil := func(at, value uint64) func() {
		store := path[:len(path)-len("base")] + "s3-cow"
		was := readDevice(t, store, 32*size.KiB)
		now := bytes.Clone(was)
		binary.LittleEndian.PutUint64(now[at:], value)
		writeDevice(t, store, 0, now)
		return func() { writeDevice(t, store, 0, was) }
	}
	const area, entry = 16 << 10, 16 // in a store
	base := uuid(vg + "-base")
	for _, b := range []struct {
		what string
		harm func() (mend func())
		want []string
	}{
		{"nothing", func() func() { return func() {} }, nil},
		{"a volume is suspended", func() func() {
			ok(t, client.Suspend(context.Background(), vg+"-base", dm.SuspendOptions{}))
			return func() { ok(t, client.Resume(vg+"-base", 0)) }
		}, []string{"DeviceSuspended " + vg + "-base"}},
		{"a store is suspended", func() func() {
			ok(t, client.Suspend(context.Background(), vg+"-s3-cow", dm.SuspendOptions{}))
			return func() { ok(t, client.Resume(vg+"-s3-cow", 0)) }
		}, []string{"DeviceSuspended " + vg + "-s3-cow"}},
		{"a table is loaded only", func() func() {
			ok(t, client.Load(vg+"-base-real", must(client.Table(vg+"-base-real"))(t), false))
			return func() { ok(t, client.Clear(vg+"-base-real")) }
		}, []string{"TablePending " + vg + "-base-real"}},
		{"the volume's table leads elsewhere", func() func() {
			real := must(client.Info(vg + "-base-real"))(t).Device
			return swap(vg+"-base", func(t dm.Table) { t[0].Target = dm.Linear{Device: real} }, false)
		}, []string{"WrongTable " + vg + "-base"}},
		{"the blocks are read-only", func() func() { return swap(vg+"-base-real", func(dm.Table) {}, true) },
			[]string{"WrongTable " + vg + "-base-real"}},
		{"a store is shorter", func() func() { return swap(vg+"-s3-cow", func(t dm.Table) { t[len(t)-1].Length -= 32 }, false) },
			[]string{"WrongTable " + vg + "-s3-cow"}},
		{"a device of a volume that is gone", func() func() {
			return fake(vg+"-gone", base[:36]+strings.Repeat("x", 32))
		}, []string{"DeviceOrphaned " + vg + "-gone"}},
		{"the device of an older snapshot", func() func() {
			l := viewOf(t, c).VolumeByLV("base").Layers[0]
			return fake(vg+"-s1", lvm2.DMUUID(lvm2.ID(base[4:36]), l.LV.ID, ""))
		}, []string{"DeviceLeftover " + vg + "-s1"}}, // nobody reads it, so it needs no other device
		{"a store that lists a chunk twice", func() func() { return spoil(area+entry, 0) }, []string{"BadStore " + vg + "/s3"}},
		{"a store that lists what its volume never had", func() func() { return spoil(area+entry, 4096) }, []string{"BadStore " + vg + "/s3"}},
		{"a store that lists what is beyond its end", func() func() { return spoil(area+entry+8, 1<<40) }, []string{"BadStore " + vg + "/s3"}},
		{"a store of another chunk size", func() func() { return spoil(8, 1|64<<32) }, []string{"WrongChunk " + vg + "/s3"}},
		{"no store at all", func() func() { return spoil(0, 0x1234) }, []string{"BadStore " + vg + "/s3"}},
		{"a device has another name", func() func() {
			ok(t, client.Rename(vg+"-base-real", vg+"-other", 0))
			return func() { ok(t, client.Rename(vg+"-other", vg+"-base-real", 0)) }
		}, []string{"DeviceName " + vg + "-other"}},
		{"somebody else's device has the name", func() func() { return fake(vg+"-idle", "x") },
			[]string{"DeviceName " + vg + "-idle"}},
		{"the node leads elsewhere", func() func() {
			ok(t, exec.Command("mv", path, path+".away").Run())
			ok(t, exec.Command("cp", "-a", path+"-real", path).Run())
			return func() { ok(t, exec.Command("mv", path+".away", path).Run()) }
		}, []string{"NodeWrong " + vg + "-base"}},
	} {
		mend := b.harm()
		got := found(t, c)
		mend()
		if !slices.Equal(got, b.want) {
			t.Errorf("%s: found %q, want %q", b.what, got, b.want)
		}
	}
}

// TestVerify_brokenMetadata breaks the metadata with LVM2's commands, and expects a
// finding for each.
func TestVerify_brokenMetadata(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	path := history(t, p)
	waitIdle(t, p)
	ok(t, p.Close())
	c, vg := p.config, p.config.VolumeGroup
	frozen := viewOf(t, c).VolumeByLV("base").Layers[0]
	order := catalog.Tag("order", fmt.Sprint(frozen.Order))
	for _, b := range []struct {
		what       string
		harm, mend []string
		want       []string
	}{
		{"a tag without sense", []string{"lvchange", "--deltag", order, "--addtag", "dmsnap:order=first", vg + "/s1"},
			[]string{"lvchange", "--deltag", "dmsnap:order=first", "--addtag", order, vg + "/s1"},
			[]string{"BadTags " + vg + "/s1"}}, // and it is unknown whether s2 is needed
		{"an order twice", []string{"lvchange", "--deltag", order, "--addtag", "dmsnap:order=2", vg + "/s1"},
			[]string{"lvchange", "--deltag", "dmsnap:order=2", "--addtag", order, vg + "/s1"},
			[]string{"DuplicateOrder " + vg + "/base"}},
		{"the name of another", []string{"lvchange", "--deltag", "dmsnap:name=idle", "--addtag", "dmsnap:name=base", vg + "/idle"},
			[]string{"lvchange", "--deltag", "dmsnap:name=base", "--addtag", "dmsnap:name=idle", vg + "/idle"},
			[]string{"DuplicateName " + vg + "/idle"}},
		{"another chunk size", []string{"lvchange", "--deltag", "dmsnap:chunk=32", "--addtag", "dmsnap:chunk=64", vg + "/s3"},
			[]string{"lvchange", "--deltag", "dmsnap:chunk=64", "--addtag", "dmsnap:chunk=32", vg + "/s3"},
			[]string{"WrongTable " + vg + "-s3", "WrongChunk " + vg + "/s3"}},
		{"a frozen layer that can be written", []string{"lvchange", "-prw", vg + "/s1"}, []string{"lvchange", "-pr", vg + "/s1"},
			[]string{"Unprotected " + vg + "/s1"}},
		{"a frozen layer that can be activated", []string{"lvchange", "--setactivationskip", "n", vg + "/s1"},
			[]string{"lvchange", "--setactivationskip", "y", vg + "/s1"}, []string{"Unprotected " + vg + "/s1"}},
		{"a tag of the group", []string{"vgchange", "--addtag", "dmsnap:clean=many", vg}, []string{"vgchange", "--deltag", "dmsnap:clean=many", vg},
			[]string{"BadTags " + vg}},
		{"a copy from nowhere", []string{"lvchange", "--addtag", "dmsnap:copy=" + strings.Repeat("x", 32), vg + "/idle"},
			[]string{"lvchange", "--deltag", "dmsnap:copy=" + strings.Repeat("x", 32), vg + "/idle"},
			[]string{"CopySourceMissing " + vg + "/idle", "Unprotected " + vg + "/idle"}},
		{"a snapshot of LVM2's is none of ours", []string{"lvcreate", "-qq", "-s", "-L4m", "-n", "theirs", vg + "/base"},
			[]string{"lvremove", "-qq", "-y", vg + "/theirs"}, nil},
	} {
		lvm(t, b.harm...)
		got := slices.Compact(found(t, c))
		lvm(t, b.mend...)
		if !slices.Equal(got, b.want) {
			t.Errorf("%s: found %q, want %q", b.what, got, b.want)
		}
	}
	if got := found(t, c); len(got) != 0 {
		t.Errorf("repaired, but still found %q", got)
	}

	overrun(t, path) // the pool is closed, so nobody extends the store
	if got, want := found(t, c), []string{"LossNotRecorded " + vg + "/s3"}; !slices.Equal(got, want) {
		t.Errorf("a full store: found %q, want %q", got, want)
	}
	for _, l := range must(Inspect(ctx, c, Options{}))(t).Volumes[0].Layers {
		if l.State != StateLost {
			t.Errorf("before the loss is recorded: %+v", l)
		}
	}
	p = openPool(t, c)
	for deadline := time.Now().Add(20 * time.Second); !must(p.Snapshot(ctx, "s1"))(t).Lost; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the loss was not recorded")
		}
	}
	ok(t, p.Close())
	if got := found(t, c); len(got) != 0 {
		t.Errorf("the loss was recorded, but still found %q", got)
	}
	var told []string
	for _, f := range must(Verify(t.Context(), c, Options{}))(t).Told {
		told = append(told, f.Reason+" "+f.Where)
	}
	if want := []string{"SnapshotLost " + vg + "/s1", "SnapshotLost " + vg + "/s3"}; !slices.Equal(told, want) {
		t.Errorf("the loss was recorded, and the concerns are %q, want %q", told, want)
	}
	for _, l := range must(Inspect(ctx, c, Options{}))(t).Volumes[0].Layers {
		if l.State != StateLost {
			t.Errorf("after the loss: %+v", l)
		}
	}

	ok(t, lvm2test.Unlock(vg, "s2"))
	lvm(t, "lvremove", "-qq", "-y", vg+"/s2")
	if got, want := found(t, c), []string{"HistoryBroken " + vg + "/base"}; !slices.Equal(got, want) {
		t.Errorf("without a layer: found %q, want %q", got, want)
	}
	lvm(t, "lvremove", "-qq", "-y", vg+"/s3")
	if got, want := found(t, c), []string{"HistoryBroken " + vg + "/base"}; !slices.Equal(got, want) {
		t.Errorf("without the newest layer: found %q, want %q", got, want)
	}
}

// TestVerify_cannotLook returns an error, and no finding, if the pool cannot be
// read.
func TestVerify_cannotLook(t *testing.T) {
	p := testPool(t, nil)
	none := p.config
	none.VolumeGroup = "vgnone"
	if v, err := Verify(t.Context(), none, Options{}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("no such group: %+v, %v", v, err)
	}
	none.Devices, none.Create, none.File, none.Size = nil, false, "/does/not/exist", size.GiB
	if v, err := Verify(t.Context(), none, Options{}); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), none.File) {
		t.Errorf("a file that is not attached: %+v, %v", v, err)
	}
	lock := must(lvm2.Host{}.LockVG(t.Context(), p.config.VolumeGroup, lvm2.Exclusive))(t)
	limited, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if v, err := Inspect(limited, p.config, Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("locked: %+v, %v", v, err)
	}
	ok(t, lock.Unlock())
}
