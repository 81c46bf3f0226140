//go:build !kernel

package lvm2

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func lock(t testing.TB, h Host, mode LockMode) *Lock {
	t.Helper()
	l, err := h.LockVG(context.Background(), "vg", mode)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// within tries to take a lock for 30 ms.
func within(h Host, mode LockMode) (*Lock, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	return h.LockVG(ctx, "vg", mode)
}

// TestLockVG_modes: shared locks exclude exclusive locks only, and released
// locks leave no files.
func TestLockVG_modes(t *testing.T) {
	h := testHost(t)
	for _, c := range []struct {
		held, wanted LockMode
		granted      bool
	}{{Shared, Shared, true}, {Shared, Exclusive, false}, {Exclusive, Shared, false}, {Exclusive, Exclusive, false}} {
		held := lock(t, h, c.held)
		l, err := within(h, c.wanted)
		if (err == nil) != c.granted || err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v while %v is held: %v", c.wanted, c.held, err)
		}
		if l != nil {
			l.Unlock()
		}
		if err := held.Unlock(); err != nil {
			t.Error(err)
		}
	}
	entries, err := os.ReadDir(h.LockDir)
	if err != nil || len(entries) > 0 {
		t.Errorf("left in the lock directory: %v, %v", entries, err)
	}
	if _, err := h.LockVG(context.Background(), "../vg", Shared); !errors.Is(err, ErrInvalid) {
		t.Errorf("a lock on a path: %v", err)
	}
}

// TestLockVG_prefersWriters: a waiting writer keeps new readers out, so that it
// does not wait forever.
func TestLockVG_prefersWriters(t *testing.T) {
	h := testHost(t)
	reader := lock(t, h, Shared)
	got := make(chan *Lock)
	go func() {
		l, err := h.LockVG(context.Background(), "vg", Exclusive)
		if err != nil {
			t.Error(err)
		}
		got <- l
	}()
	aux := filepath.Join(h.LockDir, "V_vg:aux")
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(aux); err == nil {
			break
		}
		if time.Since(begin) > 5*time.Second {
			t.Fatal("the waiting writer does not take the auxiliary lock")
		}
	}
	if l, err := within(h, Shared); err == nil {
		l.Unlock()
		t.Error("a reader overtook the waiting writer")
	}
	reader.Unlock()
	writer := <-got
	if writer != nil {
		writer.Unlock()
	}
	lock(t, h, Shared).Unlock()
}

// TestLockVG_excludes: exclusive locks exclude each other although their files
// are unlinked on release.
func TestLockVG_excludes(t *testing.T) {
	h := testHost(t)
	var inside, most atomic.Int32
	counter := 0
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				l, err := h.LockVG(context.Background(), "vg", Exclusive)
				if err != nil {
					t.Error(err)
					return
				}
				most.Store(max(most.Load(), inside.Add(1)))
				counter++
				inside.Add(-1)
				if err := l.Unlock(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if most.Load() != 1 || counter != 400 {
		t.Errorf("%d holders at once, %d turns", most.Load(), counter)
	}
}

// TestLockVG_canceled: the end of the context ends the wait, and the abandoned
// wait blocks nobody.
func TestLockVG_canceled(t *testing.T) {
	h := testHost(t)
	held := lock(t, h, Exclusive)
	defer held.Unlock()
	reason := errors.New("shutdown")
	ctx, cancel := context.WithCancelCause(context.Background())
	time.AfterFunc(10*time.Millisecond, func() { cancel(reason) })
	begin := time.Now()
	if _, err := h.LockVG(ctx, "vg", Exclusive); !errors.Is(err, reason) || time.Since(begin) > time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
	if _, err := os.Stat(filepath.Join(h.LockDir, "V_vg:aux")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the abandoned wait still holds the auxiliary lock: %v", err)
	}
	global, err := h.LockGlobal(context.Background(), Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(h.LockDir, "P_global")); err != nil {
		t.Error(err)
	}
	global.Unlock()
}
