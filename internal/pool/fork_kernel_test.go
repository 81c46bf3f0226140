//go:build kernel

package pool

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// content is a model of a volume's bytes.
type content []byte

// scribble writes random blocks to the device and to the model.
func (c content) scribble(t *testing.T, r *rand.Rand, path string, writes int) {
	t.Helper()
	c.scribbleAt(t, r, path, 0, writes)
}

// scribbleAt is scribble for a model of the bytes from base on.
func (c content) scribbleAt(t *testing.T, r *rand.Rand, path string, base, writes int) {
	t.Helper()
	const block = 4096
	for range writes {
		at := r.IntN(len(c)/block) * block
		n := min(len(c)-at, (1+r.IntN(16))*block)
		for i := range n / 8 {
			v := r.Uint64()
			for k := range 8 {
				c[at+8*i+k] = byte(v >> (8 * k))
			}
		}
		writeDevice(t, path, int64(base+at), c[at:at+n])
	}
}

func (c content) compare(t *testing.T, path, what string) {
	t.Helper()
	c.compareAt(t, path, 0, what)
}

func (c content) compareAt(t *testing.T, path string, base int, what string) {
	t.Helper()
	const block = 4096
	got := readPart(t, path, size.Bytes(base), size.Bytes(len(c)))
	for i := 0; i < len(c); i += block {
		if !bytes.Equal(got[i:i+block], c[i:i+block]) {
			t.Fatalf("%s: block %d has other content", what, i/block)
		}
	}
}

// waitHydrated waits until the volume is no fork any more.
func waitHydrated(t *testing.T, p *Pool, lv string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		o := must(p.latest())(t).VolumeByLV(lv)
		if o == nil || !o.Forked() {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s is not hydrated; progress %v, failure %v", lv, o.Hydrated, p.hydrator.failure(lv))
		}
	}
	ok(t, p.refresh(context.Background())) // its devices match afterwards
}

// TestFork_lifeOfARestore: a restored volume can be used immediately and while it is
// hydrated. It ends as an ordinary volume, and nothing of the fork stays.
func TestFork_lifeOfARestore(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.HydrationRate = 2 * size.MiB })
	r := rand.New(rand.NewPCG(1, 2))
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 24 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	base := make(content, v.Size)
	base.scribble(t, r, path, 300)
	must(p.CreateSnapshot(ctx, "snap1", v.LV))(t)
	copy1 := content(bytes.Clone(base))
	base.scribble(t, r, path, 100)

	began := time.Now()
	f := must(p.CreateVolume(ctx, VolumeSpec{Name: "fork", Size: 32 * size.MiB, Mode: Block, Source: Source{Kind: FromSnapshot, LV: "snap1"}}))(t)
	t.Logf("made in %v", time.Since(began))
	forkPath := must(p.Activate(ctx, f.LV))(t)
	t.Logf("active after %v", time.Since(began))
	copy1 = append(copy1, make(content, f.Size-size.Bytes(len(copy1)))...)
	copy1.compare(t, forkPath, "the fork, fresh")
	passes := 0
	for ; ; passes++ {
		o := must(p.latest())(t).VolumeByLV(f.LV)
		if !o.Forked() {
			break
		}
		copy1.scribble(t, r, forkPath, 20)
		base.scribble(t, r, path, 5)
		copy1.compare(t, forkPath, fmt.Sprintf("the fork, %v sectors hydrated", o.Hydrated))
	}
	t.Logf("%d passes, hydrated after %v", passes, time.Since(began))
	if passes < 3 {
		t.Errorf("the fork was hydrated after %d passes, too early for this test", passes)
	}
	copy1.scribble(t, r, forkPath, 20)
	copy1.compare(t, forkPath, "the hydrated volume")
	base.compare(t, path, "the source")
	ok(t, p.DeleteSnapshot(ctx, "snap1"))
	waitIdle(t, p)
	if tables := settledTo(t, p, 2); len(tables) != 2 || !strings.Contains(tables["fork"], "linear") || strings.Contains(tables["fork"], "\n") {
		t.Errorf("after the hydration the devices are %v, want two linear ones", tables)
	}
	ok(t, p.Deactivate(ctx, f.LV))
	copy1.compare(t, must(p.Activate(ctx, f.LV))(t), "the hydrated volume, active again")
	for _, lv := range []string{f.LV, v.LV} {
		ok(t, p.Deactivate(ctx, lv))
		ok(t, p.DeleteVolume(ctx, lv))
	}
	waitIdle(t, p)
	if n := len(must(p.latest())(t).VG.LVs); n != 0 {
		t.Errorf("%d logical volumes are left", n)
	}
}
