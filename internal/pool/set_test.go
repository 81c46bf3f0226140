package pool

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// closed returns the configuration of a pool that no machine can open.
func closed(t *testing.T, name string) Config {
	t.Helper()
	return Config{Name: name, VolumeGroup: "vg-" + name, File: filepath.Join(t.TempDir(), "no", "directory"), Size: size.GiB}
}

// TestSet_unopenedPools opens a set whose pools cannot be opened. The set returns
// the reason for each pool.
func TestSet_unopenedPools(t *testing.T) {
	s, err := OpenSet(t.Context(), []Config{closed(t, "b"), closed(t, "a")}, Options{RunDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if names := strings.Join(s.Names(), " "); names != "b a" {
		t.Errorf("names %q", names)
	}
	if p, err := s.Pool("a"); p != nil || !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "pool a is not open: ") {
		t.Errorf("a pool that is not open: %v, %v", p, err)
	}
	if p, err := s.Pool("c"); p != nil || !errors.Is(err, ErrNotFound) {
		t.Errorf("a pool that is not configured: %v, %v", p, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestOpenSet_refused refuses configurations that can never be right.
func TestOpenSet_refused(t *testing.T) {
	for name, configs := range map[string][]Config{
		"name":  {{Name: "A"}},
		"twice": {closed(t, "a"), closed(t, "a")},
	} {
		if _, err := OpenSet(t.Context(), configs, Options{RunDir: t.TempDir()}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOpenSet_otherProcess waits for another process of the node that has the pool
// open.
func TestOpenSet_otherProcess(t *testing.T) {
	c, o := closed(t, "a"), Options{RunDir: t.TempDir()}
	release, err := lockPool(t.Context(), o.RunDir, c.VolumeGroup)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 3*holdPause)
	defer cancel()
	if s, err := OpenSet(short, []Config{c}, o); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while another process has the pool: %v, %v", s, err)
	}
	opened := make(chan error)
	go func() {
		s, err := OpenSet(t.Context(), []Config{c}, o)
		if err == nil {
			err = s.Close()
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		t.Errorf("did not wait for the other process: %v", err)
	case <-time.After(3 * holdPause):
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Error(err)
	}
	if _, err := lockPool(t.Context(), o.RunDir, c.VolumeGroup); err != nil {
		t.Errorf("the lock after Close: %v", err)
	}
}

// TestSet_devicesAppear retries a pool as soon as its devices appear, before the
// next regular attempt.
func TestSet_devicesAppear(t *testing.T) {
	dir := t.TempDir()
	m := &member{config: Config{Devices: []string{filepath.Join(dir, "disk*")}}}
	seen, over := m.devices(), make(chan struct{})
	go func() {
		m.pause(t.Context(), time.Hour, seen)
		close(over)
	}()
	select {
	case <-over:
		t.Fatal("no device came")
	case <-time.After(2 * deviceLook):
	}
	if err := os.WriteFile(filepath.Join(dir, "disk1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case <-over:
	case <-time.After(time.Minute):
		t.Fatal("a device that came was not seen")
	}
}

// TestSet_waitHeld: a new process waits as long as another process has all pools, and
// only briefly for those that a killed process cannot release.
func TestSet_waitHeld(t *testing.T) {
	s := &Set{members: []*member{{held: make(chan struct{})}, {held: make(chan struct{})}}}
	const limit = 50 * time.Millisecond
	ended := make(chan bool)
	go func() {
		s.waitHeld(t.Context(), limit)
		close(ended)
	}()
	select {
	case <-ended:
		t.Fatal("it did not wait for the other process")
	case <-time.After(4 * limit):
	}
	close(s.members[1].held)
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for a pool that is not released")
	}
}

// TestSet_waitTried: a pool that another process still has does not delay the others a
// second time.
func TestSet_waitTried(t *testing.T) {
	done, never := make(chan struct{}), make(chan struct{})
	close(done)
	s := &Set{members: []*member{{held: never, tried: never}, {held: done, tried: done}}}
	ended := make(chan bool)
	go func() {
		s.waitTried(t.Context(), time.Hour)
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for a pool of another process")
	}
}
