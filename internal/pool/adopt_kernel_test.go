//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// lvmGroup makes a volume group with LVM2's own tools and opens it as a pool.
func lvmGroup(t *testing.T) *Pool {
	t.Helper()
	return testPool(t, func(c *Config) {
		c.NoFolding, c.FirstStore, c.Create = true, 16*size.MiB, false
		lvm(t, "vgcreate", "-qq", c.VolumeGroup, c.Devices[0])
		c.Devices = nil
	})
}

// follow waits until the kernel's devices match the metadata.
func follow(t *testing.T, p *Pool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		v := must(Verify(t.Context(), p.config, Options{}))(t)
		if len(v.Findings) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the devices do not follow: %+v", v.Findings)
		}
	}
}

// TestAdopt_parallelSnapshots adopts an origin with parallel snapshots that LVM2
// took, beside a running pool. The snapshots keep their content while the volume is
// written to, cut and grown.
func TestAdopt_parallelSnapshots(t *testing.T) {
	for _, active := range []bool{true, false} {
		t.Run(map[bool]string{true: "active", false: "inactive"}[active], func(t *testing.T) {
			ctx := context.Background()
			p := lvmGroup(t)
			vg := p.config.VolumeGroup
			lvm(t, "lvcreate", "-qq", "-y", "-Wn", "-L32m", "-n", "base", vg)
			h := &past{t: t, p: p, lv: "base", path: p.dm.Node(vg + "-base"), content: make([]byte, 32*size.MiB), want: map[string][]byte{}, random: rand.New(rand.NewPCG(5, 6))}
			writeAll(t, h.path, h.content)
			for i, chunk := range []string{"4k", "16k", "64k"} {
				h.write(60)
				name := fmt.Sprintf("s%d", i)
				lvm(t, "lvcreate", "-qq", "-y", "-s", "-c", chunk, "-L", "28m", "-n", name, vg+"/base")
				h.want[name] = bytes.Clone(h.content)
			}
			lvm(t, "lvcreate", "-qq", "-y", "-s", "-L", "4m", "-n", "full", vg+"/base")
			h.write(60)
			// A snapshot that LVM2 took can be written to, and no older snapshot
			// may read those writes.
			own := bytes.Repeat([]byte("written to s2 "), 4096/14+1)[:4096]
			for i := range 20 {
				off := h.random.IntN(len(h.content)/4096) * 4096
				writeDevice(t, p.dm.Node(fmt.Sprintf("%s-s%d", vg, 1+i%2)), int64(off), own)
				copy(h.want[fmt.Sprintf("s%d", 1+i%2)][off:], own)
			}
			fill := bytes.Repeat([]byte("B"), 1<<20)
			for off := 0; off < 8<<20; off += len(fill) {
				writeDevice(t, h.path, int64(off), fill)
				copy(h.content[off:], fill)
			}
			for name, want := range h.want {
				if got := readDevice(t, p.dm.Node(vg+"-"+name), 32*size.MiB); !bytes.Equal(got, want) {
					t.Fatalf("before the adoption %s has wrong bytes", name)
				}
			}
			ok(t, p.refresh(ctx))
			if n := len(must(p.Volumes(ctx))(t)) + len(must(p.Snapshots(ctx))(t)); n != 0 {
				t.Errorf("%d volumes and snapshots before the adoption", n)
			}
			seen := must(Inspect(ctx, p.config, Options{}))(t).Volumes
			if len(seen) != 1 || seen[0].LV != "base" || seen[0].State != StateLVM2 || len(seen[0].Layers) != 4 || len(seen[0].Devices) != 10 {
				t.Errorf("before the adoption: %+v", seen)
			}
			adoption := Adoption{LV: "base", Name: "adopted", Mode: Block}
			writer := must(os.OpenFile(p.dm.Node(vg+"-s1"), os.O_RDWR, 0))(t)
			if err := Adopt(ctx, p.config, Options{}, adoption); !errors.Is(err, ErrPrecondition) {
				t.Errorf("with a snapshot open: %v", err)
			}
			writer.Close()
			if !active {
				lvm(t, "vgchange", "-qq", "-an", vg)
				h.path = ""
			}

			ok(t, Adopt(ctx, p.config, Options{}, adoption))
			ok(t, Adopt(ctx, p.config, Options{}, adoption)) // a second adoption changes nothing
			ok(t, p.refresh(ctx))
			follow(t, p)
			h.idle("after the adoption")
			if v := must(p.Volume(ctx, "base"))(t); v.Name != "adopted" || !v.Formatted || v.Mode != Block {
				t.Errorf("the volume is %+v", v)
			}
			if s := must(p.Snapshots(ctx))(t); len(s) != 4 || !s[0].Lost || s[0].LV != "full" || s[1].Lost || s[2].Lost || s[3].Lost {
				t.Errorf("the snapshots are %+v", s)
			}
			h.check("after the adoption")
			h.activate()
			h.write(60)
			h.check("written to")
			h.cut("n1", 16*size.KiB)
			h.grow(8 * size.MiB)
			h.write(60)
			h.cut("n2", 4*size.KiB)
			h.write(60)
			h.check("cut")
			ok(t, p.DeleteSnapshot(ctx, "full"))
			h.remove("s1") // no snapshot reads through it, so its store is discarded immediately
			if n := len(must(p.latest())(t).VolumeByLV("base").Layers); n != 5 {
				t.Errorf("%d layers", n)
			}
			h.check("without s1")
			vgck(t, vg)
			ok(t, h.p.Close())
			if !active {
				removeAll(t, h.p)
			}
			h.p = openPool(t, h.p.config)
			h.activate()
			h.check("after a restart")
			if n := h.fold(); n != 0 { // two snapshots read through the layer of the adoption
				t.Errorf("%d folds", n)
			}
			h.remove("s2", "n1")
			h.check("without s2 and n1")
			if n := h.fold(); n != 2 {
				t.Errorf("%d folds", n)
			}
			h.write(30)
			h.check("folded")
			h.remove("n2", "s0")
			waitIdle(t, h.p)
			h.check("without snapshots")
			if n := len(must(h.p.latest())(t).VG.LVs); n != 1 {
				t.Errorf("%d logical volumes are left", n)
			}
			h.deactivate()
		})
	}
}

func writeAll(t *testing.T, path string, data []byte) {
	t.Helper()
	for off := 0; off < len(data); off += 1 << 20 {
		writeDevice(t, path, int64(off), data[off:][:1<<20])
	}
}

// TestAdopt_mounted adopts a mounted volume with a snapshot that is mounted
// read-only. The snapshot can be read while the layers below it change.
func TestAdopt_mounted(t *testing.T) {
	ctx := context.Background()
	p := lvmGroup(t)
	vg := p.config.VolumeGroup
	lvm(t, "lvcreate", "-qq", "-y", "-Wn", "-L64m", "-n", "base", vg)
	lvm(t, "mkfs.ext4", "-q", "-F", p.dm.Node(vg+"-base"))
	dir, snap := t.TempDir(), t.TempDir()
	ok(t, unix.Mount(p.dm.Node(vg+"-base"), dir, "ext4", 0, ""))
	t.Cleanup(func() { unix.Unmount(dir, 0) })
	file := func(at, text string) {
		t.Helper()
		if got, err := os.ReadFile(at + "/file"); err != nil || string(got) != text {
			t.Errorf("%s/file has %.20q, %v, want %.20q", at, got, err, text)
		}
	}
	put := func(text string) {
		t.Helper()
		f := must(os.Create(dir + "/file"))(t)
		must(f.WriteString(text))(t)
		ok(t, errors.Join(f.Sync(), f.Close()))
	}
	put("one")
	lvm(t, "lvcreate", "-qq", "-y", "-s", "-L", "32m", "-n", "s1", vg+"/base")
	put("two")
	lvm(t, "lvcreate", "-qq", "-y", "-s", "-L", "32m", "-n", "s2", vg+"/base")
	put("three")
	ok(t, unix.Mount(p.dm.Node(vg+"-s1"), snap, "ext4", 0, ""))
	adoption := Adoption{LV: "base", Mode: Filesystem, FSType: "ext4"}
	if err := Adopt(ctx, p.config, Options{}, adoption); !errors.Is(err, ErrPrecondition) {
		t.Errorf("a snapshot is mounted for writing, and adopted with %v", err)
	}
	ok(t, unix.Unmount(snap, 0))
	ok(t, unix.Mount(p.dm.Node(vg+"-s1"), snap, "ext4", unix.MS_RDONLY, "noload"))
	ok(t, Adopt(ctx, p.config, Options{}, adoption))
	ok(t, p.refresh(ctx))
	follow(t, p)
	file(snap, "one")
	file(dir, "three")
	put("four")
	must(p.CreateSnapshot(ctx, "s3", "base"))(t)
	put("five")
	ok(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	file(snap, "one")
	file(dir, "five")
	if _, err := p.CreateVolume(ctx, VolumeSpec{Name: "early", Mode: Filesystem, FSType: "ext4", Source: Source{Kind: FromSnapshot, LV: "s1"}}); !errors.Is(err, ErrInUse) {
		t.Errorf("restored from a snapshot whose device is mounted: %v", err)
	}
	ok(t, unix.Unmount(snap, 0))
	for name, text := range map[string]string{"s1": "one", "s2": "two", "s3": "four"} {
		r := must(p.CreateVolume(ctx, VolumeSpec{Name: "r" + name, Mode: Filesystem, FSType: "ext4", Source: Source{Kind: FromSnapshot, LV: name}}))(t)
		at := t.TempDir()
		ok(t, unix.Mount(must(p.Activate(ctx, r.LV))(t), at, "ext4", 0, ""))
		file(at, text)
		ok(t, unix.Unmount(at, 0))
		ok(t, p.Deactivate(ctx, r.LV))
		ok(t, p.DeleteVolume(ctx, r.LV))
	}
	follow(t, p)
	for _, s := range []string{"s2", "s1", "s3"} {
		ok(t, p.DeleteSnapshot(ctx, s))
	}
	waitIdle(t, p)
	follow(t, p)
	file(dir, "five")
	ok(t, unix.Unmount(dir, 0))
	ok(t, p.Deactivate(ctx, "base"))
}

// TestAdopt_besideLayers adopts snapshots that lvm2 took of a volume with snapshots
// of the pool.
func TestAdopt_besideLayers(t *testing.T) {
	ctx := context.Background()
	h := newPast(t, 16*size.MiB)
	vg := h.p.config.VolumeGroup
	h.write(40)
	h.cut("s1", 16*size.KiB)
	h.write(40)
	h.cut("s2", 16*size.KiB)
	h.write(40)
	lvm(t, "lvcreate", "-qq", "-y", "-s", "-L", "16m", "-n", "theirs", vg+"/v")
	theirs := bytes.Clone(h.content)
	h.write(40)
	ok(t, h.p.refresh(ctx))
	if _, err := h.p.CreateSnapshot(ctx, "s3", h.lv); !errors.Is(err, ErrPrecondition) {
		t.Errorf("a cut beside lvm2's snapshot: %v", err)
	}
	ok(t, Adopt(ctx, h.p.config, Options{}, Adoption{LV: h.lv, Mode: Block}))
	ok(t, h.p.refresh(ctx))
	follow(t, h.p)
	h.want["theirs"] = theirs
	h.check("adopted")
	h.write(40)
	h.cut("s3", 16*size.KiB)
	h.write(40)
	h.check("cut")
	waitTrimmed(t, h.p)
	h.remove("s2", "theirs", "s3")
	h.fold()
	h.check("folded")
	h.idle("folded")
	h.remove("s1")
	h.check("without snapshots")
	h.deactivate()
}

// TestAdopt_refused leaves logical volumes alone that cannot be volumes.
func TestAdopt_refused(t *testing.T) {
	ctx := context.Background()
	p := lvmGroup(t)
	vg := p.config.VolumeGroup
	lvm(t, "lvcreate", "-qq", "-y", "-Wn", "-L16m", "-n", "base", vg)
	lvm(t, "lvcreate", "-qq", "-y", "-s", "-L16m", "-n", "snap", vg+"/base")
	lvm(t, "lvcreate", "-qq", "-y", "-Wn", "-L16m", "-n", "merged", vg)
	lvm(t, "lvcreate", "-qq", "-y", "-s", "-L16m", "-n", "msnap", vg+"/merged")
	open := must(os.Open(p.dm.Node(vg + "-merged")))(t)
	lvm(t, "lvconvert", "-qq", "-y", "--merge", vg+"/msnap")
	ok(t, p.refresh(ctx))
	must(p.CreateVolume(ctx, VolumeSpec{Name: "taken", Size: 4 * size.MiB, Mode: Block}))(t)
	deleted := must(p.CreateVolume(ctx, VolumeSpec{Name: "deleted", Size: 4 * size.MiB, Mode: Block}))(t)
	must(p.CreateSnapshot(ctx, "kept", deleted.LV))(t)
	ok(t, p.DeleteVolume(ctx, deleted.LV))
	hidden := must(p.latest())(t).Volumes.Get(must(p.latest())(t).Snapshots.Get("kept").Of).LV.Name
	half := catalog.NewLV("half", "volume", catalog.Tag("name", "half"), catalog.Tag("mode", string(Block)), catalog.Tag("copy", string(must(p.latest())(t).Snapshots.Get("kept").LV.ID)))
	ok(t, p.do(ctx, &change{what: "half a copy", edit: func(t *edit) error {
		ranges, err := t.AllocateOn(catalog.AnyKind, 1, catalog.LowEnd)
		half.Segments = catalog.AppendExtents(nil, ranges...)
		return errors.Join(err, t.Put(half))
	}}))
	before := must(p.latest())(t).VG.Seqno
	for name, c := range map[string]struct {
		a    Adoption
		want error
	}{
		"absent":         {Adoption{LV: "none", Mode: Block}, ErrNotFound},
		"no mode":        {Adoption{LV: "base"}, ErrInvalid},
		"no file system": {Adoption{LV: "base", Mode: Filesystem}, ErrInvalid},
		"name taken":     {Adoption{LV: "base", Name: "taken", Mode: Block}, ErrConflict},
		"a snapshot":     {Adoption{LV: "snap", Mode: Block}, ErrPrecondition},
		"being merged":   {Adoption{LV: "merged", Mode: Block}, ErrPrecondition},
		"deleted":        {Adoption{LV: hidden, Mode: Block}, ErrPrecondition},
		"being copied":   {Adoption{LV: "half", Mode: Block}, ErrPrecondition},
	} {
		if err := Adopt(ctx, p.config, Options{}, c.a); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	ok(t, p.refresh(ctx))
	if now := must(p.latest())(t).VG.Seqno; now != before {
		t.Errorf("the group is changed: generation %d, before %d", now, before)
	}
	ok(t, p.do(ctx, &change{what: "no half a copy", edit: func(t *edit) error { return t.Remove(half.ID) }}))
	open.Close()
}
