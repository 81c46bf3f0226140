//go:build kernel

package pool

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestFoldLeavesRoom: what a volume's writers do while its newest layer is
// folded comes to the heir's store, too. When the heir becomes the live layer it
// must have as much room as a new one, or it is full before the monitor sees it.
func TestFoldLeavesRoom(t *testing.T) {
	const first = 16 * size.MiB
	ctx := context.Background()
	h := newPast(t, 128*size.MiB)
	h.p.config.FirstStore = first
	fill := func(from, to int64) {
		for at := from << 20; at < to<<20; at += 1 << 20 {
			data := bytes.Repeat([]byte{byte(h.random.Uint32()), 7}, 1<<19)
			writeDevice(t, h.path, at, data)
			copy(h.content[at:], data)
		}
	}
	h.cut("heir", 16*size.KiB)
	h.write(10)
	h.cut("gone", 16*size.KiB)
	h.remove("gone")
	f := &fold{Pool: h.p, foldPair: h.pair()}
	ok(t, f.count(ctx))
	ok(t, f.begin(ctx))
	heir := must(h.p.latest())(t).layers[f.heir]
	room := int64(must(h.p.snapshotStatus(h.p.vgName+"-heir"))(t).Total.Bytes() >> 20)
	for at := int64(0); at < room-3; at += 3 { // slowly: gone's store grows
		fill(at, min(at+3, room-3))
		time.Sleep(100 * time.Millisecond)
	}
	ok(t, f.copyAll(ctx))
	inTime := late(t, h.p, h.lv)
	ok(t, f.exclusive(ctx, func() error {
		if err := f.handOver(); err != nil {
			return err
		}
		return f.commit()
	}))
	s := must(h.p.snapshotStatus(h.p.vgName + "-heir"))(t)
	t.Logf("%s: %v of %v are used", heir.lv.Name, s.Used.Bytes(), s.Total.Bytes())
	fill(room, room+int64(first>>20)-2)
	inTime()
	ok(t, f.end())
	h.check("after the fold")
	h.write(10)
	h.check("written after the fold")
	h.idle("after the fold")
	h.deactivate()
}
