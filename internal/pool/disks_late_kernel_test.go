//go:build kernel

package pool

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// hotPool is a pool with two volumes on a disk that can be pulled out, and one on
// a disk that stays.
type hotPool struct {
	*Pool
	t               *testing.T
	disk            *hotDisk
	hot, busy, cold Volume
}

func newHotPool(t *testing.T) *hotPool {
	t.Helper()
	ctx := context.Background()
	disks := testDisks(t)
	h := &hotPool{t: t, disk: newHotDisk(t)}
	config := Config{Name: "pool", VolumeGroup: "vghot", Devices: []string{h.disk.device()}, Create: true, FirstStore: 8 * size.MiB}
	h.Pool = openPool(t, config)
	h.hot = must(h.CreateVolume(ctx, VolumeSpec{Name: "hot", Size: 32 * size.MiB, Mode: Block}))(t)
	h.busy = must(h.CreateVolume(ctx, VolumeSpec{Name: "busy", Size: 16 * size.MiB, Mode: Block}))(t)
	ok(t, h.Close())
	config.Devices = append(config.Devices, disks[0])
	h.Pool = openPool(t, config)
	h.cold = must(h.CreateVolume(ctx, VolumeSpec{Name: "cold", Size: 256 * size.MiB, Mode: Block}))(t)
	t.Cleanup(func() {
		h.Close()
		removeDevices(t, "vghot")
	})
	// From now on, the configuration matches the disk under any name.
	ok(t, h.Close())
	config.Devices, config.Create = []string{"/dev/sd*", config.Devices[1]}, false
	h.Pool = openPool(t, config)
	return h
}

// quiet waits until the pool and its volumes have no concerns.
func (h *hotPool) quiet() {
	h.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		health := h.PoolHealth(context.Background())
		for _, v := range []Volume{h.hot, h.busy, h.cold} {
			health = append(health, must(h.Health(context.Background(), v.LV))(h.t)...)
		}
		if len(health) == 0 {
			return
		}
		if time.Now().After(end) {
			h.t.Fatalf("the pool's health: %v", health)
		}
	}
}

// maps reports whether a device of the group maps the disk with that device number.
func (h *hotPool) maps(number string) bool {
	return slices.ContainsFunc(strings.Split(command(h.t, "dmsetup", "table"), "\n"), func(line string) bool {
		return strings.HasPrefix(line, "vghot-") && slices.Contains(strings.Fields(line), number)
	})
}

// writing is a program that writes numbered blocks, one after the other, and retries
// failed writes.
type writing struct {
	t            *testing.T
	file         *os.File
	stop         atomic.Bool
	ended        chan struct{}
	done, failed int
}

func writer(t *testing.T, path string) *writing {
	t.Helper()
	w := &writing{t: t, file: must(os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0))(t), ended: make(chan struct{})}
	b := directBuffer(t, 4096)
	go func() {
		defer close(w.ended)
		for !w.stop.Load() {
			binary.LittleEndian.PutUint64(b, uint64(w.done))
			if _, err := w.file.WriteAt(b, int64(w.done%writtenBlocks)*4096); err != nil {
				w.failed++
			} else {
				w.done++
			}
			time.Sleep(time.Millisecond)
		}
	}()
	t.Cleanup(func() {
		w.end()
		w.file.Close()
	})
	return w
}

const writtenBlocks = 1024

func (w *writing) end() {
	w.stop.Store(true)
	<-w.ended
}

// check fails the test unless each block has its last content.
func (w *writing) check() {
	w.t.Helper()
	b := directBuffer(w.t, 4096)
	for n := max(0, w.done-writtenBlocks); n < w.done; n++ {
		must(w.file.ReadAt(b, int64(n%writtenBlocks)*4096))(w.t)
		if got := binary.LittleEndian.Uint64(b); got != uint64(n) {
			w.t.Fatalf("write %d is missing: its block has write %d", n, got)
		}
	}
}

func numberOf(t *testing.T, path string) string {
	t.Helper()
	return must(dm.DeviceOf(path))(t).String()
}

// TestDisks_lateDisk: a disk that appears after the pool was opened is used, and the
// pool is complete again. Until then calls that need the disk fail with ErrUnavailable.
func TestDisks_lateDisk(t *testing.T) {
	ctx := context.Background()
	h := newHotPool(t)
	model := bytes.Repeat([]byte("late"), 1<<10)
	writeDevice(t, must(h.Activate(ctx, h.hot.LV))(t), 0, model)
	ok(t, h.Deactivate(ctx, h.hot.LV))
	ok(t, h.Close())
	h.disk.remove()
	h.Pool = openPool(t, h.config)
	if _, err := h.CreateVolume(ctx, VolumeSpec{Name: "new", Size: 16 * size.MiB, Mode: Block}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("CreateVolume without the disk returned %v", err)
	}
	if _, err := h.Activate(ctx, h.hot.LV); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Activate without the volume's disk returned %v", err)
	}
	if told := must(h.Health(ctx, h.hot.LV))(t); !slices.ContainsFunc(told, func(c Condition) bool { return c.Reason == "DeviceMissing" }) {
		t.Errorf("the health of the volume on the missing disk is %v", told)
	}
	if told := must(h.Health(ctx, h.cold.LV))(t); len(told) > 0 {
		t.Errorf("the health of the other volume is %v", told)
	}
	h.disk.attach()
	h.quiet()
	back(t, h.Pool, "new")
	if got := readDevice(t, must(h.Activate(ctx, h.hot.LV))(t), size.Bytes(len(model))); !bytes.Equal(got, model) {
		t.Error("the volume has other content")
	}
}

// TestDisksMoved_volumesInUse: a disk that comes back under another name, more than
// once, is used again for its volumes in use. Users of other volumes do not notice.
func TestDisksMoved_volumesInUse(t *testing.T) {
	ctx := context.Background()
	h := newHotPool(t)
	path := must(h.Activate(ctx, h.hot.LV))(t)
	other := must(h.Activate(ctx, h.cold.LV))(t)
	must(h.CreateSnapshot(ctx, "s", h.hot.LV))(t)
	model := bytes.Repeat([]byte("back"), 1<<18)
	writeDevice(t, path, 0, model)
	held := must(os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0))(t)
	defer held.Close()
	steady, stubborn := writer(t, other), writer(t, must(h.Activate(ctx, h.busy.LV))(t))
	buffer := directBuffer(t, 4096)
	for n := range 4 {
		before := numberOf(t, h.disk.device())
		h.disk.remove()
		if n == 2 { // the driver also restarts
			ok(t, h.Close())
			h.Pool = openPool(t, h.config)
		}
		if _, err := held.ReadAt(buffer, 0); err == nil {
			t.Fatal("the volume can be read without its disk")
		}
		h.disk.attach()
		now := numberOf(t, h.disk.device())
		if now == before {
			t.Fatalf("the disk came back with the same device number %s", now)
		}
		h.quiet()
		for end := time.Now().Add(30 * time.Second); h.maps(before); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("devices map %s still:\n%s", before, command(t, "dmsetup", "table"))
			}
		}
		if _, err := held.ReadAt(buffer, 0); err != nil {
			t.Fatalf("reading the volume by a file that stayed open: %v", err)
		}
		if got := readDevice(t, path, size.Bytes(len(model))); !bytes.Equal(got, model) {
			t.Fatal("the volume has other content")
		}
		model[n]++
		writeDevice(t, path, 0, model[:4096])
		must(h.CreateSnapshot(ctx, fmt.Sprintf("s%d", n), h.hot.LV))(t)
	}
	if steady.end(); steady.failed > 0 {
		t.Errorf("%d writes to the volume on the disk that stayed failed", steady.failed)
	}
	stubborn.end()
	t.Logf("%d writes to the disk, %d of them failed while it was away", stubborn.done+stubborn.failed, stubborn.failed)
	stubborn.check()
	if s := must(h.Snapshot(ctx, "s"))(t); s.Lost {
		t.Error("the snapshot is lost")
	}
	back(t, h.Pool, "new")
	vgck(t, h.vgName)
	noFindings(t, h.Pool)
}

// TestRewriter_staleDisk: a disk that lost a commit gets the metadata without waiting for
// a change. The pool says until it is closed that the disk has lost writes.
func TestRewriter_staleDisk(t *testing.T) {
	ctx := context.Background()
	h := newHotPool(t)
	area := readDevice(t, h.disk.device(), 24*size.MiB)
	must(h.CreateVolume(ctx, VolumeSpec{Name: "later", Size: 8 * size.MiB, Mode: Block}))(t)
	for n := range int64(6) {
		writeDevice(t, h.disk.device(), n*4<<20, area[n*4<<20:][:4<<20])
	}
	told := false
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		health := h.PoolHealth(ctx)
		says := func(what string) bool {
			return slices.ContainsFunc(health, func(c Condition) bool { return c.Reason == "MetadataDegraded" && strings.Contains(c.Message, what) })
		}
		told = told || says("old metadata")
		if told && len(health) == 1 && says("lost writes") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the stale metadata was reported: %v; the pool's health is %v", told, health)
		}
	}
	must(h.Volume(ctx, "later"))(t)
	vgck(t, h.vgName)
	if out := command(t, "pvs", "--noheadings", "-o", "pv_name", "--devices", h.disk.device(), h.disk.device()); !strings.Contains(out, h.disk.device()) {
		t.Errorf("pvs does not show the disk: %s", out)
	}
}

// TestDisks_markedAsMissing: a disk that lvm2 has marked as missing stays missing when
// it is back, as for lvm2. Errors and health calls say what to do, and their advice
// works.
func TestDisks_markedAsMissing(t *testing.T) {
	ctx := context.Background()
	h := newHotPool(t)
	h.disk.remove()
	for end := time.Now().Add(20 * time.Second); must(h.latest())(t).Writable() == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the pool does not notice that the disk is missing")
		}
	}
	command(t, "lvchange", "--addtag", "changed", h.vgName+"/"+h.cold.LV)
	h.disk.attach()
	const advice = "vgextend --restoremissing"
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, err := h.CreateVolume(ctx, VolumeSpec{Name: "new", Size: 8 * size.MiB, Mode: Block})
		if !errors.Is(err, ErrUnavailable) {
			t.Fatalf("CreateVolume returned %v, want ErrUnavailable", err)
		}
		if told := must(h.Health(ctx, h.hot.LV))(t); strings.Contains(err.Error(), advice) && len(told) > 0 && strings.Contains(told[0].Message, advice) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the error or the volume's health lacks the advice: %v", err)
		}
	}
	if _, err := h.Activate(ctx, h.hot.LV); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Activate returned %v, want ErrUnavailable", err)
	}
	command(t, "vgextend", "--restoremissing", h.vgName, h.disk.device())
	h.quiet()
	back(t, h.Pool, "new")
	must(h.Activate(ctx, h.hot.LV))(t)
}

// TestDisksMoved_everyKindOfVolume: after a disk comes back as another device, forks
// under hydration, readers, snapshots that are read, and transient volumes continue;
// also if it is the group's only disk.
func TestDisksMoved_everyKindOfVolume(t *testing.T) {
	ctx := context.Background()
	testDisks(t)
	disk := newHotDisk(t)
	config := Config{Name: "pool", VolumeGroup: "vghot", Devices: []string{disk.device()}, Create: true, FirstStore: 4 * size.MiB, HydrationRate: 256 * size.KiB}
	p := openPool(t, config)
	t.Cleanup(func() {
		p.Close()
		removeDevices(t, "vghot")
	})
	ok(t, p.Close())
	config.Devices, config.Create = []string{"/dev/sd*"}, false
	p = openPool(t, config)
	base := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 8 * size.MiB, Mode: Block}))(t)
	content := func(b byte) []byte { return bytes.Repeat([]byte{b}, 1<<20) }
	paths := map[string]string{"base": must(p.Activate(ctx, base.LV))(t)}
	writeDevice(t, paths["base"], 0, content('1'))
	must(p.CreateSnapshot(ctx, "s1", base.LV))(t)
	writeDevice(t, paths["base"], 0, content('2'))
	must(p.CreateSnapshot(ctx, "s2", base.LV))(t)
	writeDevice(t, paths["base"], 0, content('3'))
	for name, spec := range map[string]VolumeSpec{
		"fork":      {Source: Source{Kind: FromSnapshot, LV: "s1"}},
		"reader":    {Source: Source{Kind: FromSnapshot, LV: "s2"}, ReadOnly: true},
		"transient": {Source: Source{Kind: FromSnapshot, LV: "s1"}, Transient: true},
	} {
		spec.Name, spec.Mode = name, Block
		v := must(p.CreateVolume(ctx, spec))(t)
		paths[name] = must(p.Activate(ctx, v.LV))(t)
	}
	writeDevice(t, paths["fork"], 1<<20, content('f'))
	writeDevice(t, paths["transient"], 1<<20, content('t'))
	want := map[string]string{"base": "3\x00", "fork": "1f", "reader": "2\x00", "transient": "1t"}
	check := func(when string) {
		t.Helper()
		for name, w := range want {
			for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				f := must(os.OpenFile(paths[name], os.O_RDONLY|unix.O_DIRECT, 0))(t)
				b := ioBuffer(t)[:2<<20]
				_, err := f.ReadAt(b, 0)
				f.Close()
				if err == nil {
					if !bytes.Equal(b[:1<<20], content(w[0])) || !bytes.Equal(b[1<<20:], content(w[1])) {
						t.Errorf("%s, volume %s has other content: %q %q", when, name, b[0], b[1<<20])
					}
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%s, volume %s cannot be read: %v\n%s", when, name, err, command(t, "dmsetup", "table"))
				}
			}
		}
	}
	check("before the moves")
	for n := range 2 {
		before := numberOf(t, disk.device())
		disk.remove()
		for end := time.Now().Add(20 * time.Second); p.broken.Load() == nil; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the pool does not notice that its only disk is missing")
			}
		}
		if _, err := p.CreateSnapshot(ctx, "never", base.LV); !errors.Is(err, ErrUnavailable) {
			t.Errorf("CreateSnapshot without the disk returned %v", err)
		}
		disk.attach()
		check(fmt.Sprintf("after move %d", n+1))
		for end := time.Now().Add(30 * time.Second); strings.Contains(command(t, "dmsetup", "deps"), "("+strings.ReplaceAll(before, ":", ", ")+")"); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("devices map %s still:\n%s", before, command(t, "dmsetup", "table"))
			}
		}
	}
	writeDevice(t, paths["base"], 0, content('4'))
	want["base"] = "4\x00"
	must(p.CreateSnapshot(ctx, "s3", base.LV))(t)
	ok(t, p.Close())
	config.HydrationRate = 0
	p = openPool(t, config)
	waitHydrated(t, p, "fork")
	check("after the hydration")
	noFindings(t, p)
}
