//go:build kernel

package pool

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// usedSpace counts a pool's extents by their use.
type usedSpace struct {
	live, trimmed, ideal, untrimmed, trash lvm2.Extents // ideal: extents that the trimmed stores use
	stores, segments                       int          // number of trimmed stores, and the most segments of one
}

func spaceOf(v *view) (s usedSpace) {
	for _, o := range v.Volumes.All() {
		for _, l := range o.Layers {
			switch {
			case l.Snap != nil:
				s.live += l.LV.Size()
			case l.Trimmed:
				s.trimmed += l.LV.Size()
				s.ideal += v.Extents(l.Used.Bytes())
				s.stores++
				s.segments = max(s.segments, len(l.LV.Segments))
			default:
				s.untrimmed += l.LV.Size()
			}
		}
	}
	for _, lv := range v.Trash {
		s.trash += lv.Size()
	}
	return s
}

func logSpace(t *testing.T, p *Pool, what string) {
	t.Helper()
	v := must(p.latest())(t)
	s, m := spaceOf(v), p.metadata(v)
	var pieces []string
	for _, r := range v.Free {
		pieces = append(pieces, fmt.Sprint(r.Count))
	}
	t.Logf("%s; extents: live %d, of %d trimmed stores %d (used %d, at most %d segments), of others %d, trash %d, free %d in %d pieces (%s); metadata %v of %v",
		what, s.live, s.stores, s.trimmed, s.ideal, s.segments, s.untrimmed, s.trash, v.Free.Size(), len(pieces), strings.Join(pieces[:min(len(pieces), 10)], " "), m.Used, m.Size)
}

// timed logs how long f took.
func timed(t *testing.T, what string, f func()) {
	t.Helper()
	began := time.Now()
	f()
	t.Logf("%s: %v", what, time.Since(began))
}

// TestCut_manySnapshots: as many snapshots as fit can be taken immediately, however
// large their first stores are, and each costs only its changes. They can be deleted
// in any order.
func TestCut_manySnapshots(t *testing.T) {
	ctx := context.Background()
	config := Config{Name: "pool", VolumeGroup: "vgmanycuts", Devices: testDisks(t)[:1], Create: true}
	p := testPool(t, func(c *Config) { *c = config })
	n, length := 80, 128*size.MiB
	if must(p.Capacity(ctx))(t).Free > 5*size.GiB { // only with DMSNAP_DISKS=6G, for measurements
		n, length = 1000, 32*size.MiB // User-mode Linux cannot map a larger one page by page
	}
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: length, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	whole := must(p.latest())(t).Free.Size()
	r := rand.New(rand.NewPCG(1, 2))
	base := make(content, v.Size)
	base.scribble(t, r, path, 100)
	oldest := content(bytes.Clone(base))
	var snapshots []string
	var took []time.Duration
	for i := range n {
		began := time.Now()
		s, err := p.CreateSnapshot(ctx, fmt.Sprint("s", i), v.LV)
		if err != nil {
			logSpace(t, p, "after the error")
			t.Fatalf("snapshot %d: %v", i+1, err)
		}
		took = append(took, time.Since(began))
		snapshots = append(snapshots, s.LV)
		base.scribble(t, r, path, 10)
		if len(took) == n/10 {
			slices.Sort(took)
			logSpace(t, p, fmt.Sprintf("up to snapshot %d each took %v, at most %v", i+1, took[len(took)/2], took[len(took)-1]))
			took = nil
		}
	}
	for end := time.Now().Add(20 * time.Second); spaceOf(must(p.latest())(t)).untrimmed > 0 && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
	waitIdle(t, p)
	logSpace(t, p, "when stores are trimmed")
	if s := spaceOf(must(p.latest())(t)); s.trimmed != s.ideal || s.segments > catalog.SmallPieces+1 || s.stores != n-1 {
		t.Errorf("frozen stores are larger than their used part, or in too many pieces: %+v", s)
	}
	noFindings(t, p)

	timed(t, "show the oldest snapshot", func() {
		reader := must(p.CreateVolume(ctx, VolumeSpec{Name: "reader", Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: snapshots[0]}}))(t)
		oldest.compare(t, must(p.Activate(ctx, reader.LV))(t), "the oldest snapshot")
		ok(t, p.Deactivate(ctx, reader.LV))
		ok(t, p.DeleteVolume(ctx, reader.LV))
	})
	timed(t, "restore the oldest snapshot", func() {
		fork := must(p.CreateVolume(ctx, VolumeSpec{Name: "fork", Mode: Block, Source: Source{Kind: FromSnapshot, LV: snapshots[0]}}))(t)
		oldest.compare(t, must(p.Activate(ctx, fork.LV))(t), "the restored volume")
		waitHydrated(t, p, fork.LV)
		ok(t, p.Deactivate(ctx, fork.LV))
		ok(t, p.DeleteVolume(ctx, fork.LV))
	})
	ok(t, p.Deactivate(ctx, v.LV))
	ok(t, p.Close())
	timed(t, "open the pool again", func() { p = openPool(t, config) })
	base.compare(t, must(p.Activate(ctx, v.LV))(t), "the volume")
	timed(t, "delete the snapshot in the middle", func() { ok(t, p.DeleteSnapshot(ctx, snapshots[n/2])) })
	timed(t, "delete all other snapshots", func() {
		for _, i := range r.Perm(n) {
			ok(t, p.DeleteSnapshot(ctx, snapshots[i]))
		}
	})
	timed(t, "free their extents", func() {
		for end := time.Now().Add(time.Minute); must(p.latest())(t).Free.Size() != whole; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				logSpace(t, p, "when all are deleted")
				t.Fatalf("of %d extents only %d are free again", whole, must(p.latest())(t).Free.Size())
			}
		}
	})
	base.compare(t, path, "the volume without snapshots")
	noFindings(t, p)
	ok(t, p.Deactivate(ctx, v.LV))
	ok(t, p.DeleteVolume(ctx, v.LV))
	waitIdle(t, p)
}

// TestCut_smallExtents: in a group with extents of 1 MiB, a volume has the requested
// 3 MiB, and a frozen store takes one extent.
func TestCut_smallExtents(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.ExtentSize, c.FirstStore = size.MiB, 0 })
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 3 * size.MiB, Mode: Block}))(t)
	if v.Size != 3*size.MiB {
		t.Errorf("the volume has %v", v.Size)
	}
	path := must(p.Activate(ctx, v.LV))(t)
	base := make(content, v.Size)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 3 {
		must(p.CreateSnapshot(ctx, fmt.Sprint("s", i), v.LV))(t)
		base.scribble(t, r, path, 2)
	}
	for end := time.Now().Add(20 * time.Second); spaceOf(must(p.latest())(t)).untrimmed > 0 && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
	if s := spaceOf(must(p.latest())(t)); s.trimmed != 2 || s.ideal != 2 {
		t.Errorf("the two frozen stores do not take one extent each: %+v", s)
	}
	ok(t, p.Deactivate(ctx, v.LV))
}
