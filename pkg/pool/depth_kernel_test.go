//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestDepth: a snapshot that lies deeper than the kernel's stack takes is refused to
// whoever wants to read it, none is put there while it is read, and it can be
// read once newer ones are deleted.
func TestDepth(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.FirstStore = 4 * size.MiB })
	if p.deepest != depthFramed {
		t.Fatalf("the test kernel has frame pointers, and %d layers are taken for readable", p.deepest)
	}
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 16 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	const cuts = depthFramed + 4
	for i := range cuts {
		writeDevice(t, path, 0, bytes.Repeat([]byte{byte('a' + i)}, 4096))
		must(p.CreateSnapshot(ctx, fmt.Sprint("s", i), v.LV))(t)
		if i == 1 {
			ok(t, p.DeleteSnapshot(ctx, "s1")) // a layer without a name counts
		}
	}
	if said := must(p.Health(ctx, v.LV))(t); len(said) != 1 || said[0].Reason != "SnapshotsTooDeep" || !strings.Contains(said[0].Message, "up to s3") {
		t.Errorf("health says %v", said)
	}
	restore := func(name, of string, readOnly bool) (Volume, error) {
		return p.CreateVolume(ctx, VolumeSpec{Name: name, Mode: Block, ReadOnly: readOnly, Source: Source{FromSnapshot, of}})
	}
	for _, readOnly := range []bool{false, true} {
		if _, err := restore("deep", "s3", readOnly); !errors.Is(err, ErrPrecondition) || !strings.Contains(err.Error(), "24") {
			t.Errorf("a restore of what lies too deep, read-only %v: %v", readOnly, err)
		}
	}
	edge := must(restore("edge", "s4", true))(t) // as deep as can be
	at := must(p.Activate(ctx, edge.LV))(t)
	if got := readPart(t, at, 0, size.MiB); got[0] != 'e' {
		t.Errorf("the snapshot at the limit has %q", got[:4])
	}
	if _, err := p.CreateSnapshot(ctx, "more", v.LV); !errors.Is(err, ErrPrecondition) || !strings.Contains(err.Error(), edge.LV) {
		t.Errorf("a cut that puts what is read too deep: %v", err)
	}
	ok(t, p.Deactivate(ctx, edge.LV))
	ok(t, p.DeleteVolume(ctx, edge.LV))
	must(p.CreateSnapshot(ctx, "more", v.LV))(t) // nobody reads: it is kept only
	for i := 10; i < cuts; i++ {
		ok(t, p.DeleteSnapshot(ctx, fmt.Sprint("s", i)))
	}
	var oldest Volume
	err := errors.New("not tried")
	for end := time.Now().Add(40 * time.Second); err != nil && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		oldest, err = restore("oldest", "s0", true)
	}
	ok(t, err)
	at = must(p.Activate(ctx, oldest.LV))(t)
	if got := readPart(t, at, 0, size.MiB); got[0] != 'a' {
		t.Errorf("the oldest snapshot has %q", got[:4])
	}
	ok(t, p.Deactivate(ctx, oldest.LV))
	ok(t, p.DeleteVolume(ctx, oldest.LV))
	ok(t, p.Deactivate(ctx, v.LV))
}
