//go:build kernel

package pool

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// diskOf4096 makes a disk with logical blocks of 4096 bytes.
func diskOf4096(t *testing.T, length string) string {
	t.Helper()
	dir := t.TempDir()
	ok(t, unix.Mount("disk", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	file := filepath.Join(dir, "disk")
	command(t, "truncate", "-s", length, file)
	return looped(t, file, "--sector-size", "4096")
}

// blockSizes returns the logical block sizes of a pool's devices whose names begin with
// prefix, each size once.
func blockSizes(t *testing.T, p *Pool, prefix string) (all []string) {
	t.Helper()
	for name := range devicesOf(t, p) {
		if strings.HasPrefix(name, prefix) {
			all = append(all, command(t, "blockdev", "--getss", p.dm.Node(p.vgName+"-"+name)))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// TestKinds_otherDiskIsRefused: a disk with another block size than the other disks is
// refused, and the pool is made and opened without it.
func TestKinds_otherDiskIsRefused(t *testing.T) {
	p := testPool(t, func(c *Config) {
		c.Devices = append(testDisks(t)[:2], diskOf4096(t, "256M"))
	})
	for range 2 {
		vg := must(p.latest())(t).VG
		if len(vg.PVs) != 2 || vg.PVs[0].BlockSize != 512 || vg.PVs[1].BlockSize != 512 {
			t.Errorf("the group has %d disks, want two with blocks of 512 bytes", len(vg.PVs))
		}
		refused := func(reason, text string) bool { return reason == "DiskRefused" && strings.Contains(text, "4096") }
		if health := p.PoolHealth(context.Background()); len(health) != 1 || !refused(health[0].Reason, health[0].Message) {
			t.Errorf("the pool's health is %v, want DiskRefused", health)
		}
		found := must(Verify(context.Background(), p.config, Options{}))(t).Findings
		if len(found) != 1 || !refused(found[0].Reason, found[0].What) {
			t.Errorf("Verify found %v, want DiskRefused", found)
		}
		if !p.closed {
			ok(t, p.Close())
			again := must(Open(context.Background(), p.config, Options{}))(t)
			defer again.Close()
			p = again
		}
	}
}

// TestKinds_diskAddedByLVM2: if lvm2 adds a disk with another block size, health reports
// MixedBlockSizes. A volume and its snapshot stay on disks of one kind.
func TestKinds_diskAddedByLVM2(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.Devices = testDisks(t)[:1] })
	added := diskOf4096(t, "256M")
	command(t, "vgextend", "-qq", "--config", "devices/allow_mixed_block_sizes=1", p.vgName, added)
	ok(t, p.refresh(ctx))
	if health := p.PoolHealth(ctx); len(health) != 1 || health[0].Reason != "MixedBlockSizes" {
		t.Errorf("the pool's health is %v, want MixedBlockSizes", health)
	}
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 64 * size.MiB, Mode: Block}))(t)
	must(p.Activate(ctx, v.LV))(t)
	must(p.CreateSnapshot(ctx, "s", v.LV))(t)
	if got := blockSizes(t, p, ""); !slices.Equal(got, []string{"512"}) {
		t.Errorf("the devices have logical blocks of %v", got)
	}
	command(t, "vgreduce", "-qq", p.vgName, added)
}

// TestKinds_mixedGroup: in a group in which lvm2 has mixed disks, a volume, its
// readers and its copies stay on disks of one kind, so that every file system can
// still be mounted.
func TestKinds_mixedGroup(t *testing.T) {
	for _, fs := range []struct{ name, mkfs string }{{"ext4", "mkfs.ext4 -q -b 1024"}, {"xfs", "mkfs.xfs -q"}} {
		t.Run(fs.name, func(t *testing.T) {
			ctx := context.Background()
			disks, large := testDisks(t), diskOf4096(t, "2500M")
			const name = "vgmixed"
			command(t, "vgcreate", "--config", "devices/allow_mixed_block_sizes=1", name, disks[0], disks[1], large)
			p := openPool(t, Config{Name: "pool", VolumeGroup: name, Devices: []string{disks[0], disks[1], large}, FirstStore: 8 * size.MiB, BurstRate: 50 * size.MiB})
			t.Cleanup(func() {
				if !t.Failed() {
					ok(t, p.Close())
					vgck(t, name)
				}
				command(t, "vgremove", "-ff", "-y", name)
			})
			mixed := func(c Condition) bool { return c.Reason == "MixedBlockSizes" }
			if health := p.PoolHealth(ctx); !slices.ContainsFunc(health, mixed) {
				t.Errorf("the pool's health is %v, want MixedBlockSizes", health)
			}
			command(t, "lvcreate", "-y", "-Wn", "-Zn", "-l", "2", "-n", "both", name, disks[0]+":200-200", large+":300-300")
			err := Adopt(ctx, p.config, Options{}, Adoption{LV: "both", Mode: Block})
			if !errors.Is(err, ErrPrecondition) || !strings.Contains(err.Error(), "logical blocks of 512 and of 4096") {
				t.Errorf("adopting a logical volume on both kinds returned %v", err)
			}
			command(t, "lvremove", "-y", name+"/both")
			v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 320 * size.MiB, Mode: Block}))(t)
			at := must(p.Activate(ctx, v.LV))(t)
			args := strings.Fields(fs.mkfs)
			command(t, args[0], append(args[1:], at)...)
			mounted := func(at string, options string) {
				t.Helper()
				dir := t.TempDir()
				if err := unix.Mount(at, dir, fs.name, 0, options); err != nil {
					t.Fatalf("mounting %s: %v, logical blocks of %s", at, err, command(t, "blockdev", "--getss", at))
				}
				if options == "" {
					ok(t, os.WriteFile(filepath.Join(dir, "file"), make([]byte, 4*size.MiB), 0o600))
				}
				ok(t, unix.Unmount(dir, 0))
			}
			mounted(at, "")

			// A snapshot whose store grows, and a copy.
			s := must(p.CreateSnapshot(ctx, "s", v.LV))(t)
			must(p.ExpandVolume(ctx, v.LV, 352*size.MiB, 0))(t)
			writeDevice(t, at, int64(324*size.MiB), make([]byte, 4*size.MiB))
			mounted(at, "")
			if got := blockSizes(t, p, ""); !slices.Equal(got, []string{"512"}) {
				t.Errorf("with a snapshot the devices have logical blocks of %v", got)
			}
			copied := must(p.CreateVolume(ctx, VolumeSpec{Name: "copy", Mode: Block, Source: Source{Kind: FromSnapshot, LV: s.LV}}))(t)
			options := ""
			if fs.name == "xfs" {
				options = "nouuid"
			}
			mounted(must(p.Activate(ctx, copied.LV))(t), options)
			waitHydrated(t, p, copied.LV)
			mounted(must(p.Activate(ctx, copied.LV))(t), options)

			// There is room, but only on the other kind.
			_, err = p.ExpandVolume(ctx, v.LV, 1800*size.MiB, 0)
			if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "logical blocks of 512") {
				t.Errorf("ExpandVolume returned %v", err)
			}
			_, err = p.CreateVolume(ctx, VolumeSpec{Name: "more", Size: 1400 * size.MiB, Mode: Block, Source: Source{Kind: FromVolume, LV: v.LV}})
			if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "logical blocks of 512") {
				t.Errorf("a clone returned %v", err)
			}
			mounted(at, "")
			most := must(p.Capacity(ctx))(t).MaxVolume
			other := must(p.CreateVolume(ctx, VolumeSpec{Name: "new", Size: most, Mode: Filesystem, FSType: fs.name}))(t)
			must(p.Activate(ctx, other.LV))(t)
			if got := blockSizes(t, p, "new"); !slices.Equal(got, []string{"4096"}) {
				t.Errorf("a volume on the other disk has logical blocks of %v", got)
			}
			must(p.CreateSnapshot(ctx, "snapnew", other.LV))(t)
			if got := blockSizes(t, p, "new"); !slices.Equal(got, []string{"4096"}) {
				t.Errorf("with a snapshot, that volume has logical blocks of %v", got)
			}
			for _, lv := range []string{v.LV, copied.LV, other.LV} {
				ok(t, p.Deactivate(ctx, lv))
			}
		})
	}
}

// TestKinds_blocksOf4096: the whole life of a volume works on a disk with logical
// blocks of 4096 bytes. There, neither metadata nor stores can be read or written in
// smaller pieces.
func TestKinds_blocksOf4096(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) {
		c.Devices, c.BurstRate, c.Chunk = []string{diskOf4096(t, "512M")}, 20*size.MiB, 4*size.KiB
	})
	r := rand.New(rand.NewPCG(1, 4096))
	v, model := snapped(t, p, r, "base", 32*size.MiB)
	at := must(p.Activate(ctx, v.LV))(t)
	first := slices.Clone(model)
	for n := range 3 {
		model.scribble(t, r, at, 100)
		must(p.CreateSnapshot(ctx, string(rune('a'+n)), v.LV))(t)
	}
	ok(t, p.DeleteSnapshot(ctx, "b"))
	f := restored(t, p, "base")
	copied := must(p.Activate(ctx, f.LV))(t)
	first.compare(t, copied, "a restored volume")
	first.scribble(t, r, copied, 50)
	waitHydrated(t, p, f.LV)
	first.compare(t, copied, "a hydrated volume")
	must(p.ExpandVolume(ctx, v.LV, 48*size.MiB, 0))(t)
	model.compare(t, at, "an expanded volume")
	config := p.config
	ok(t, p.Close())
	p = openPool(t, config)
	model.compare(t, must(p.Activate(ctx, v.LV))(t), "the volume of a reopened pool")
	if got := blockSizes(t, p, ""); !slices.Equal(got, []string{"4096"}) {
		t.Errorf("the devices have logical blocks of %v", got)
	}
	if found := must(Verify(ctx, config, Options{}))(t).Findings; len(found) > 0 {
		t.Errorf("Verify found %v", found)
	}
	for _, lv := range []string{v.LV, f.LV} {
		ok(t, p.Deactivate(ctx, lv))
	}
	ok(t, p.Close())
}
