//go:build kernel

package pool

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// fill leaves the pool that many free extents.
func fill(t *testing.T, p *Pool, left lvm2.Extents) {
	t.Helper()
	ok(t, p.do(context.Background(), &change{what: "take all extents", edit: func(e *edit) error {
		name := fmt.Sprint("filler", e.VG.Seqno)
		lv := catalog.NewLV(name, "volume", catalog.Tag("name", name), catalog.Tag("mode", string(Block)))
		ranges, err := e.AllocateOn(catalog.AnyKind, e.Free.Size()-left, catalog.LowEnd)
		if err != nil {
			return err
		}
		lv.Segments = catalog.AppendExtents(nil, ranges...)
		return e.Put(lv)
	}}))
}

// TestHold_forkInFullPool writes to a fork, and to its source, whose stores cannot
// grow. The writes wait until the fork is hydrated, and no write fails or is lost.
func TestHold_forkInFullPool(t *testing.T) {
	ctx := context.Background()
	for _, writer := range []string{"fork", "source"} {
		t.Run(writer, func(t *testing.T) {
			p := testPool(t, func(c *Config) { c.HydrationRate, c.Chunk, c.LayerReserve = size.MiB, 4*size.KiB, 1 })
			r := rand.New(rand.NewPCG(3, 4))
			v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 160 * size.MiB, Mode: Block}))(t)
			path := must(p.Activate(ctx, v.LV))(t)
			base := make(content, v.Size)
			base.scribble(t, r, path, 100)
			must(p.CreateSnapshot(ctx, "snap1", v.LV))(t)
			w := must(p.latest())(t)
			fill(t, p, w.Extents(v.Size)+w.Extents(leastStore(p.config.Chunk.Sectors(), p.peak()).Bytes())+p.reserve(w))
			f := must(p.CreateVolume(ctx, VolumeSpec{Name: "fork", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "snap1"}}))(t)
			fork := content(bytes.Clone(base))
			forkPath := must(p.Activate(ctx, f.LV))(t)
			fill(t, p, 0)
			began := time.Now()
			model, at := fork, forkPath
			if writer == "source" {
				model, at = base, path
			}
			data := make([]byte, size.MiB)
			for off := int64(0); off < int64(len(model)); off += int64(len(data)) {
				for i := range data {
					data[i] = byte(r.Uint32())
				}
				copy(model[off:], data)
				writeDevice(t, at, off, data)
			}
			t.Logf("written in %v", time.Since(began))
			if o := must(p.latest())(t).VolumeByLV(f.LV); o.Forked() {
				t.Errorf("everything was written, but it is still a fork: %v sectors hydrated", o.Hydrated)
			}
			fork.compare(t, forkPath, "the fork")
			base.compare(t, path, "the source")
			if p.facts.holding.has(must(p.latest())(t).VolumeByLV(v.LV).LV.ID) {
				t.Error("the source's writers are still held")
			}
		})
	}
}
