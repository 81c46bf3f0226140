//go:build kernel

package pool

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestGuard_panic: a panic ends only the change, the operation or the turn of a loop
// in which it happens. The volume and all other work continue.
func TestGuard_panic(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 16 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	boom := func() error { var none *catalog.Volume; return errors.New(none.Name) }
	for name, c := range map[string]*change{
		"edit": {what: "edit", edit: func(*edit) error { return boom() }},
		"act":  {what: "act", act: func(context.Context, *view) error { return boom() }},
		"step": {what: "step", act: func(ctx context.Context, w *view) error {
			c := p.convergence(w, v.LV, demand{})
			k, top := must(c.look())(t), w.topDevice(w.VG.LV(v.LV))
			return c.carryOut(ctx, []step{{do: stepSuspend, device: top, of: w.VolumeByLV(v.LV)}, {do: stepUsed, device: top}}, k)
		}},
	} {
		if err := p.do(ctx, c); !errors.Is(err, errPanic) {
			t.Errorf("a panic in the %s of a change returned %v", name, err)
		}
	}
	if _, err := run(ctx, &p.group, []string{lvKey(v.LV)}, func(context.Context) (none struct{}, err error) { return none, boom() }); !errors.Is(err, errPanic) {
		t.Errorf("a panic in an operation returned %v", err)
	}
	var turns atomic.Int32
	p.forever(func(context.Context) {
		if turns.Add(1) == 1 {
			_ = boom()
		}
	})
	for end := time.Now().Add(10 * time.Second); turns.Load() < 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a loop does not continue after a panic")
		}
	}
	writeDevice(t, path, 0, make([]byte, 4096)) // the volume is not suspended
	must(p.CreateSnapshot(ctx, "s", v.LV))(t)
	ok(t, p.Deactivate(ctx, v.LV))
}
