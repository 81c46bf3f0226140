//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestRecover_smallStore: a reader shows the result of a replay on its store, also
// after a restart. A store that is too small is replaced by a larger store. Nothing of
// the stores is left after the reader is deleted.
func TestRecover_smallStore(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	r := rand.New(rand.NewPCG(5, 6))
	_, model := snapped(t, p, r, "base", 64*size.MiB)
	from := Source{Kind: FromSnapshot, LV: "snapbase"}
	create := func(name string) Volume {
		t.Helper()
		return must(p.CreateVolume(ctx, VolumeSpec{Name: name, Mode: Block, ReadOnly: true, Source: from}))(t)
	}
	before := must(p.latest())(t).Free.Size()
	rd := create("reader")
	if now := must(p.latest())(t).Free.Size(); now != before {
		t.Errorf("a reader takes %d extents", before-now)
	}
	path := must(p.Activate(ctx, rd.LV))(t)
	if !bytes.Equal(readDevice(t, path, 64*size.MiB), model) {
		t.Fatal("the reader does not show its snapshot")
	}
	broken := errors.New("broken journal")
	if _, err := p.Recover(ctx, rd.LV, 8*size.MiB, func(string) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("a failed replay returned %v", err)
	}
	change := bytes.Repeat([]byte("recovered"), 1<<20)[:8<<20]
	changed := bytes.Clone(model)
	rounds := 0
	replay := func(device string) error {
		rounds++
		f, err := os.OpenFile(device, os.O_WRONLY, 0)
		for off := 0; err == nil && off < 48<<20; off += len(change) {
			copy(changed[off:], change)
			_, err = f.WriteAt(change, int64(off))
		}
		return errors.Join(err, f.Sync(), f.Close())
	}
	if got := must(p.Recover(ctx, rd.LV, 8*size.MiB, replay))(t); got != path || rounds < 2 {
		t.Errorf("Recover returned %s after %d rounds, want %s after at least two", got, rounds, path)
	}
	shows := func(what string) {
		t.Helper()
		if !bytes.Equal(readDevice(t, must(p.Activate(ctx, rd.LV))(t), 64*size.MiB), changed) {
			t.Errorf("%s: the reader does not show the recovered content", what)
		}
	}
	shows("after the recovery")
	noFindings(t, p)
	ok(t, p.Deactivate(ctx, rd.LV))
	shows("activated again")
	quiet(t, "vgck "+p.vgName)
	quiet(t, "lvs "+p.vgName)
	ok(t, p.Close())
	p = openPool(t, p.config)
	shows("after a restart")
	other := create("other")
	if !bytes.Equal(readDevice(t, must(p.Activate(ctx, other.LV))(t), 64*size.MiB), model) {
		t.Error("the snapshot was changed")
	}
	full(t, p)
	if _, err := p.Recover(ctx, other.LV, 8*size.MiB, replay); !errors.Is(err, ErrNoSpace) {
		t.Errorf("recovery in a full pool returned %v", err)
	}
	for _, lv := range []string{rd.LV, other.LV} {
		ok(t, p.DeleteVolume(ctx, lv))
	}
	waitIdle(t, p)
	for name := range devicesOf(t, p) {
		if strings.HasSuffix(name, "-"+layerRecovered) {
			t.Errorf("device %s is left", name)
		}
	}
}
