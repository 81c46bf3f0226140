//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// fullWhileSuspended suspends the device of the store of snapshot s, as a killed process
// leaves it. Then it writes 16 MiB to the volume until the store has overflowed, and the
// kernel no longer answers status calls for the snapshot. Until then nothing else grows or
// resumes the store, because fullWhileSuspended claims its growth. written waits for the
// writes, which end when the device is resumed.
func fullWhileSuspended(t *testing.T, client *dm.Client, p *Pool, volume string) (store string, written func()) {
	t.Helper()
	snap := p.vgName + "-s"
	store = snap + "-cow"
	claim := &growth{storeID: p.current.Load().VG.LV("s").ID, done: make(chan struct{})}
	claim.braked.Store(true)
	if _, first := p.facts.growing.claim(claim.storeID, claim); !first {
		t.Fatal("the store grows before it is written")
	}
	defer p.facts.growing.drop(claim.storeID)
	ok(t, client.Suspend(context.Background(), store, dm.SuspendOptions{SkipLockFS: true}))
	const writers = 4
	ended := make(chan error, writers)
	for i := range writers {
		b := directBuffer(t, 4*size.MiB)
		copy(b, bytes.Repeat([]byte("x"), len(b)))
		go func() { ended <- writeFrom(volume, int64(i)*int64(len(b)), b) }()
	}
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		asked := make(chan string, 1)
		go func() {
			status, err := client.Status(snap)
			asked <- fmt.Sprint(status, err)
		}()
		select {
		case answer := <-asked:
			if time.Now().Before(end) {
				continue // the store is not full yet
			}
			t.Errorf("the kernel still answers status calls, so this test proves nothing: %s", answer)
		case <-time.After(2 * careLook):
		}
		return store, func() {
			t.Helper()
			for range writers {
				ok(t, <-ended)
			}
		}
	}
}

// waitCared waits until the caretaker has looked and has nothing left to do. Otherwise it
// would resume a store that the test suspends.
func waitCared(t *testing.T, p *Pool) {
	t.Helper()
	c := p.caretaker
	for end := time.Now().Add(20 * time.Second); ; {
		time.Sleep(2 * careLook)
		c.mu.Lock()
		busy := len(c.busy)
		c.mu.Unlock()
		if busy == 0 && p.facts.unsettled.count() == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the caretaker does not end its work")
		}
	}
}

// TestActivate_suspendedFullStore: a snapshot's store overflows while a killed process
// has left its device suspended, so the kernel answers no status call for the
// snapshot. Activating a restored volume therefore resumes the store first.
func TestActivate_suspendedFullStore(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.HydrationRate, c.FirstStore = size.MiB, 4*size.MiB })
	base := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 64 * size.MiB, Mode: Block}))(t)
	volume := must(p.Activate(ctx, base.LV))(t)
	must(p.CreateSnapshot(ctx, "s", base.LV))(t)
	f := must(p.CreateVolume(ctx, VolumeSpec{Name: "f", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "s"}}))(t)
	must(p.Activate(ctx, f.LV))(t)
	again := p.hydrator.stop(f.LV)
	waitCared(t, p)
	client := must(dm.Open())(t)
	defer client.Close()
	store, written := fullWhileSuspended(t, client, p, volume)
	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := p.Activate(limited, f.LV); !errors.Is(err, ErrLost) {
		t.Errorf("Activate returned %v, want ErrLost", err)
		client.Resume(store, 0)
	}
	written()
	ok(t, p.Deactivate(ctx, f.LV))
	ok(t, p.DeleteVolume(ctx, f.LV))
	again()
	ok(t, p.Deactivate(ctx, base.LV))
}

// TestCaretaker_besideSuspendedFullStore: the kernel answers no status call for a
// snapshot whose store overflowed while its device was suspended. The caretaker still
// serves other volumes: it trims their stores.
func TestCaretaker_besideSuspendedFullStore(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.FirstStore = 4 * size.MiB })
	base := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 64 * size.MiB, Mode: Block}))(t)
	other := must(p.CreateVolume(ctx, VolumeSpec{Name: "other", Size: 64 * size.MiB, Mode: Block}))(t)
	volume := must(p.Activate(ctx, base.LV))(t)
	must(p.CreateSnapshot(ctx, "s", base.LV))(t)
	waitCared(t, p)
	client := must(dm.Open())(t)
	defer client.Close()
	store, written := fullWhileSuspended(t, client, p, volume)
	rescue := time.AfterFunc(40*time.Second, func() { client.Resume(store, 0) })
	must(p.CreateSnapshot(ctx, "o1", other.LV))(t)
	must(p.CreateSnapshot(ctx, "o2", other.LV))(t)
	for end := time.Now().Add(20 * time.Second); spaceOf(must(p.latest())(t)).untrimmed > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Error("the store of another volume's snapshot was not trimmed")
			break
		}
	}
	if !rescue.Stop() {
		t.Error("trimming took so long that the test resumed the store")
	}
	ok(t, client.Resume(store, 0))
	written()
	ok(t, p.Deactivate(ctx, base.LV))
}

// TestOpen_suspendedFullStore: a snapshot's store overflowed while no driver ran and
// its device was left suspended. The pool resumes the store before anything else,
// opens within its time, and serves other volumes, and the writers continue.
func TestOpen_suspendedFullStore(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.FirstStore = 4 * size.MiB })
	base := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 64 * size.MiB, Mode: Block}))(t)
	other := must(p.CreateVolume(ctx, VolumeSpec{Name: "other", Size: 8 * size.MiB, Mode: Block}))(t)
	volume := must(p.Activate(ctx, base.LV))(t)
	must(p.CreateSnapshot(ctx, "s", base.LV))(t)
	config := p.config
	ok(t, p.Close())
	client := must(dm.Open())(t)
	defer client.Close()
	store, written := fullWhileSuspended(t, client, p, volume)
	rescue := time.AfterFunc(20*time.Second, func() { client.Resume(store, 0) })
	began := time.Now()
	p = openPool(t, config)
	if _, err := p.Activate(ctx, other.LV); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); !rescue.Stop() || took > 15*time.Second {
		t.Errorf("opening the pool and activating another volume took %v", took)
	}
	written()
	s := must(p.Snapshots(ctx))(t)
	if len(s) != 1 || !s[0].Lost {
		t.Errorf("the snapshot with the full store is not lost: %+v", s)
	}
	ok(t, p.Deactivate(ctx, other.LV))
	ok(t, p.Deactivate(ctx, base.LV))
}
