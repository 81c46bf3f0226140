//go:build kernel

package pool

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// addLayers adds n frozen layers before the live layer of a volume, in one commit. Each
// has the given number of exceptions, with chunks of 4 KiB. addLayers returns the
// content of the oldest snapshot, s0.
func addLayers(t *testing.T, p *Pool, lv string, base []byte, n, exceptions int) []byte {
	t.Helper()
	const chunk = cow.MinChunk
	r, want := rand.New(rand.NewPCG(1, 9)), bytes.Clone(base)
	used := cow.UsedSectors(chunk, uint64(exceptions))
	buf := ioBuffer(t)[:used.Bytes()]
	ok(t, p.do(context.Background(), &change{what: "make many layers", edit: func(e *edit) error {
		o := e.VolumeByLV(lv)
		live := o.Live().LV.Clone()
		live.Tags = catalog.SetTag(live.Tags, "order", strconv.Itoa(n+1))
		if err := e.Put(live); err != nil {
			return err
		}
		for i := n - 1; i >= 0; i-- { // the oldest layer last: its content counts
			clear(buf)
			copy(buf, cow.NewHeader(chunk))
			for k, at := range r.Perm(len(base) / int(chunk))[:exceptions] {
				entry := buf[int(chunk)+16*k:]
				binary.LittleEndian.PutUint64(entry, uint64(at))
				binary.LittleEndian.PutUint64(entry[8:], uint64(2+k))
				data := buf[(2+k)*int(chunk):][:chunk]
				binary.LittleEndian.PutUint64(data, uint64(i)<<32|uint64(at))
				copy(want[at*int(chunk):], data)
			}
			piece, ok := catalog.OnePiece(e.Free, e.Extents(used.Bytes()), catalog.HighEnd)
			if !ok {
				return ErrNoSpace
			}
			if err := e.writing(e.Take(piece)[0], func(f *os.File, from int64) error { return second(f.WriteAt(buf, from)) }); err != nil {
				return err
			}
			name := fmt.Sprint("s", i)
			l := catalog.NewLV(name, "layer", catalog.Tag("of", string(o.LV.ID)), catalog.Tag("name", name), catalog.Tag("order", strconv.Itoa(i+1)), catalog.Tag("created", strconv.Itoa(i+1)),
				catalog.Tag("length", strconv.Itoa(len(base)/512)), catalog.Tag("chunk", "8"), catalog.Tag("used", strconv.Itoa(int(used))))
			l.Status = []string{lvm2.StatusRead, lvm2.StatusVisible}
			catalog.HandOff(l)
			l.Segments = catalog.AppendExtents(nil, piece)
			if err := e.Put(l); err != nil {
				return err
			}
		}
		return nil
	}}))
	return want
}

// readAll reads a device once and returns the time that it took.
func readAll(t *testing.T, path string, length size.Bytes) time.Duration {
	t.Helper()
	began := time.Now()
	readDevice(t, path, length)
	return time.Since(began)
}

// slab returns the kernel's memory for tables and other unreclaimable objects, in KiB.
func slab(t *testing.T) (kib int) {
	for line := range strings.Lines(string(must(os.ReadFile("/proc/meminfo"))(t))) {
		if f := strings.Fields(line); f[0] == "SUnreclaim:" || f[0] == "VmallocUsed:" {
			kib += must(strconv.Atoi(f[1]))(t)
		}
	}
	return kib
}

// TestFlat_thousandSnapshots: the oldest of a thousand snapshots, with 100,000
// exceptions in all, is read by two devices, and activated within 10 s.
func TestFlat_thousandSnapshots(t *testing.T) {
	const layers, exceptions = 1000, 100
	ctx := context.Background()
	p := testPool(t, func(c *Config) {
		lvm(t, "vgcreate", "-qq", "-s", "512k", "--metadatasize", "16m", c.VolumeGroup, c.Devices[0])
		c.Create, c.NoFolding, c.FirstStore = false, true, 4*size.MiB
	})
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 128 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	base := make(content, v.Size)
	r := rand.New(rand.NewPCG(2, 3))
	base.scribble(t, r, path, 100)
	must(p.CreateSnapshot(ctx, "live", v.LV))(t)
	want := content(addLayers(t, p, v.LV, base, layers, exceptions))
	newest := must(p.CreateVolume(ctx, VolumeSpec{Name: "newest", Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: "live"}}))(t)
	newestPath := must(p.Activate(ctx, newest.LV))(t)
	oldest := must(p.CreateVolume(ctx, VolumeSpec{Name: "oldest", Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: "s0"}}))(t)
	before, began := slab(t), time.Now()
	shown := must(p.Activate(ctx, oldest.LV))(t)
	took, memory := time.Since(began), slab(t)-before
	if n := levels(t, p, "s0"); n != 2 {
		t.Errorf("the oldest snapshot is read by %d devices, want 2", n)
	}
	want.compare(t, shown, "the oldest of a thousand")
	base.compare(t, newestPath, "the newest")
	var old, young time.Duration
	for range 5 {
		young += readAll(t, newestPath, v.Size)
		old += readAll(t, shown, v.Size)
	}
	t.Logf("activation took %v and %d KiB of the kernel's memory; reading 5 times %v took %v for the oldest, %v for the newest", took, memory, v.Size, old, young)
	if took > 10*time.Second {
		t.Errorf("activating the oldest snapshot took %v", took)
	}
	base.scribble(t, r, path, 100)
	want.compare(t, shown, "the oldest of a thousand after writes")
	noFindings(t, p)
	for _, lv := range []string{oldest.LV, newest.LV} {
		ok(t, p.Deactivate(ctx, lv))
		ok(t, p.DeleteVolume(ctx, lv))
	}
	noFlats(t, p)
	ok(t, p.Deactivate(ctx, v.LV))
}
