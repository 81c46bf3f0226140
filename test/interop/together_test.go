//go:build kernel

package interop

import (
	"context"
	"flag"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

var together = flag.Duration("together", 30*time.Second, "how long TestTogether_concurrentCommands runs the pool's operations and LVM2's commands concurrently")

// stacked matches what lvs says about a frozen layer while a device reads
// through it: the layer is a plain volume in the metadata, but its device is a
// snapshot.
var stacked = regexp.MustCompile(`(?m)^\s*WARNING: Cannot find matching striped segment for \S+\.\n?`)

// metHeld matches what vgchange says when it resumes a volume that the pool
// holds still for a cut. The pool holds a volume before it takes the group's
// lock, because a freeze may take long. The pool repeats such a cut.
var metHeld = regexp.MustCompile(`(?m)^\s*Attempted to decrement suspended device counter below zero\.\n?`)

// as returns a copy of the group for use in a subtest.
func (g *group) as(t *testing.T) *group {
	c := *g
	c.T = t
	return &c
}

// TestTogether_concurrentCommands: operations of the pool and commands of LVM2 run on
// one group concurrently, without an error, and with the right bytes.
func TestTogether_concurrentCommands(t *testing.T) {
	ctx := context.Background()
	g := newGroup(t, 2)
	p := g.open()
	keep := g.history("keep") // not deleted: LVM2 tags and activates it
	until := time.Now().Add(*together)
	running := func() bool { return time.Now().Before(until) && !t.Failed() }
	var ours, theirs, looks, tags atomic.Int64

	t.Run("concurrently", func(t *testing.T) {
		for w := range 3 {
			t.Run(fmt.Sprintf("ours%d", w), func(t *testing.T) {
				t.Parallel()
				g := g.as(t)
				for i := 0; running(); i++ {
					g.life(fmt.Sprintf("w%d-%d", w, i))
					ours.Add(1)
				}
			})
		}
		t.Run("LVM2's volumes", func(t *testing.T) {
			t.Parallel()
			g := g.as(t)
			for i := 0; running(); i++ {
				g.theirLife(fmt.Sprintf("theirs%d", i))
				theirs.Add(1)
			}
		})
		t.Run("LVM2 looking and activating", func(t *testing.T) {
			t.Parallel()
			g := g.as(t)
			for ; running(); looks.Add(1) {
				if _, complaints := run("lvs", "-a", "-o", "+lv_tags", g.name); stacked.ReplaceAllString(complaints, "") != "" {
					g.Errorf("lvs: %s", complaints)
				}
				if _, complaints := run("vgchange", "-q", "-ay", g.name); metHeld.ReplaceAllString(complaints, "") != "" {
					g.Errorf("vgchange: %s", complaints)
				}
				g.lvm("vgs", "-o", "+vg_tags", g.name)
				g.vgck("vgchange -ay")
			}
		})
		t.Run("LVM2 changing the driver's volumes", func(t *testing.T) {
			t.Parallel()
			g := g.as(t)
			for i := 0; running(); i++ {
				g.lvm("lvchange", "-q", "--addtag", fmt.Sprintf("tag%d", i), g.name+"/keep", g.name+"/keep-0", g.name+"/keep-2")
				g.lvm("vgchange", "-q", "--addtag", fmt.Sprintf("tag%d", i), g.name)
				g.write(keep, 1+i%100, 'k')
				tags.Add(1)
			}
		})
	})
	t.Logf("in %v: %d lives of the driver's volumes, %d of LVM2's; LVM2 listed and activated %d times, tagged %d times", *together, ours.Load(), theirs.Load(), looks.Load(), tags.Load())
	if ours.Load() == 0 || theirs.Load() == 0 || looks.Load() == 0 || tags.Load() == 0 {
		t.Error("one of the four made no progress")
	}

	// Nothing is lost, and nothing is left over.
	for snapshot, want := range map[string]string{"keep-0": "0.", "keep-1": "1.", "keep-2": "2."} {
		if got := g.restored(snapshot, 2); got != want {
			t.Errorf("snapshot %s has %q, want %q", snapshot, got, want)
		}
	}
	vg := g.settled()
	for i := range int(tags.Load()) {
		tag := fmt.Sprintf("tag%d", i)
		for _, lv := range []string{"keep", "keep-0", "keep-2"} {
			if !slices.Contains(vg.LV(lv).Tags, tag) {
				t.Errorf("%s lost the tag %s", lv, tag)
			}
		}
		if !slices.Contains(vg.Tags, tag) {
			t.Errorf("the group lost the tag %s", tag)
		}
	}
	g.listed("all operations", "keep keep@keep-0 keep@keep-1 keep@keep-2")
	if got := strings.Join(g.devices(), " "); got != strings.ReplaceAll("VG-keep VG-keep--2 VG-keep--2-cow VG-keep-real", "VG", g.name) {
		t.Errorf("the devices are %s", got)
	}
	if len(vg.LVs) != 5 { // with the link of the live layer
		t.Errorf("there are %d logical volumes", len(vg.LVs))
	}
	for _, s := range []string{"keep-0", "keep-1", "keep-2"} {
		g.ok(p.DeleteSnapshot(ctx, s))
	}
	g.vgck("all operations")
}

// life takes one volume of the driver's from its creation to its end.
func (g *group) life(name string) {
	g.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	path := g.history(name)
	if _, err := g.pool.ExpandVolume(ctx, name, 32*size.MiB, 0); err != nil {
		g.Fatal(err)
	}
	if got := g.restored(name+"-1", 2); got != "1." {
		g.Errorf("snapshot %s-1 has %q", name, got)
	}
	g.ok(g.pool.DeleteSnapshot(ctx, name+"-1"))
	_, err := g.pool.CreateVolume(ctx, pool.VolumeSpec{Name: name + "-clone", Mode: pool.Block, Source: pool.Source{Kind: pool.FromVolume, LV: name}})
	g.ok(err)
	g.write(path, 0, '4')
	clone, err := g.pool.Activate(ctx, name+"-clone")
	g.ok(err)
	if got := g.first(path, 2) + g.first(clone, 2) + g.restored(name+"-0", 2); got != "4.3.0." {
		g.Errorf("volume, clone and oldest snapshot of %s have %q", name, got)
	}
	g.ok(g.pool.Deactivate(ctx, name+"-clone"))
	g.ok(g.pool.DeleteVolume(ctx, name+"-clone"))
	g.ok(g.pool.DeleteVolume(ctx, name))
	g.ok(g.pool.DeleteSnapshot(ctx, name+"-2"))
	g.ok(g.pool.DeleteSnapshot(ctx, name+"-0"))
}

// theirLife takes one volume of LVM2's, with a snapshot, from its creation to
// its end.
func (g *group) theirLife(name string) {
	g.Helper()
	origin, snapshot := "/dev/"+g.name+"/"+name, "/dev/"+g.name+"/"+name+"s"
	g.lvm("lvcreate", "-q", "-y", "-L", "8M", "-n", name, g.name)
	g.write(origin, 0, 'x')
	g.lvm("lvcreate", "-q", "-y", "-s", "-L", "4M", "-n", name+"s", g.name+"/"+name)
	g.write(origin, 0, 'y')
	if got := g.first(origin, 1) + g.first(snapshot, 1); got != "yx" {
		g.Errorf("LVM2's volume and snapshot have %q", got)
	}
	g.lvm("lvremove", "-q", "-y", g.name+"/"+name+"s")
	g.lvm("lvextend", "-q", "-L", "12M", g.name+"/"+name)
	if got := g.first(origin, 1); got != "y" {
		g.Errorf("LVM2's volume has %q", got)
	}
	g.lvm("lvremove", "-q", "-y", g.name+"/"+name)
}
