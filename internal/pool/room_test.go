package pool

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// roomPool returns a pool without background work.
func roomPool(c Config) *Pool {
	return newPool(context.Background(), c, Options{})
}

// TestCheckRoom_trash: checkRoom returns a *PendingError if trash that will be wiped
// makes room for a volume, and ErrNoSpace if trash cannot help.
func TestCheckRoom_trash(t *testing.T) {
	const limit = 2 * stuckAfter
	for _, c := range []struct {
		what    string
		n       lvm2.Extents
		rounds  int           // failed rounds
		ago     time.Duration // age of the first failure
		unclear bool
		pending bool
	}{
		{"there is room", 11, limit, 2 * busyLimit, false, false},
		{"there will be room", 19, 0, 0, false, true},
		{"there will be room after a few failed rounds", 19, stuckAfter - 1, 2 * busyLimit, false, true},
		{"room only in the reserve", 20, 0, 0, false, false},
		{"trash that is open for a moment", 19, limit, 0, false, true},
		{"trash that cannot be wiped", 19, stuckAfter, 2 * busyLimit, false, false},
		{"a tag is not understood, so nothing is wiped", 19, 0, 0, true, false},
	} {
		v := rollbackGroup(t)
		p := roomPool(Config{LayerReserve: 10}) // the group has 499 extents
		v.Free = catalog.RangeSet{{Start: 100, Count: 60}}
		v.Trash = []*lvm2.LV{v.VolumeByLV("bare").LV} // 8 extents
		if c.unclear {
			v.Unclear = errors.New("a tag")
		}
		next := p.wiper.freed()
		for range c.rounds {
			p.wiper.note(map[lvm2.ID]bool{v.Trash[0].ID: true})
			f := p.wiper.failures[v.Trash[0].ID]
			f.since = f.since.Add(-c.ago)
			p.wiper.failures[v.Trash[0].ID] = f
		}
		err := p.checkRoom(v, catalog.AnyKind, c.n)
		var pending *PendingError
		if errors.As(err, &pending) != c.pending || !c.pending && c.n > 11 != errors.Is(err, ErrNoSpace) {
			t.Errorf("%s: checkRoom returned %v", c.what, err)
		}
		select {
		case <-next:
			if c.rounds < stuckAfter || c.ago == 0 {
				t.Errorf("%s: waiting callers are woken", c.what)
			}
		default:
			if c.rounds >= stuckAfter && c.ago > 0 {
				t.Errorf("%s: waiting callers are not woken", c.what)
			}
		}
		if p.wiper.note(nil); p.wiper.stuck(v.Trash[0].ID) {
			t.Errorf("%s: trash that was wiped counts as stuck", c.what)
		}
	}
}

// TestOnceRoom_oneAtATime: one cut at a time waits a moment for room, and then returns
// ErrNoSpace. Other errors are returned immediately.
func TestOnceRoom_oneAtATime(t *testing.T) {
	p := roomPool(Config{})
	none := &noRoomYet{ErrNoSpace}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	var tries, others atomic.Int32
	ended := make(chan error)
	wait := func(n *atomic.Int32, to int32) {
		for end := time.Now().Add(time.Second); n.Load() < to && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
	}
	go func() {
		_, err := onceRoom(ctx, p, func() (size.Bytes, error) { tries.Add(1); return 0, none })
		ended <- err
	}()
	wait(&tries, 2) // now the first caller has the key
	go func() {
		_, err := onceRoom(ctx, p, func() (size.Bytes, error) { others.Add(1); return 0, none })
		ended <- err
	}()
	wait(&others, 1)
	p.wiper.wakeWaiters()
	for range 2 {
		if err := <-ended; !errors.Is(err, ErrNoSpace) || ctx.Err() != nil {
			t.Errorf("%v; the caller's context: %v", err, ctx.Err())
		}
	}
	if tries, others := tries.Load(), others.Load(); tries != 3 || others > 2 { // immediately, with the key, and after extents became free
		t.Errorf("the first caller tried %d times, want 3; the later caller %d times, want at most 2", tries, others)
	}
	if _, err := onceRoom(context.Background(), p, func() (size.Bytes, error) { return 0, ErrPrecondition }); !errors.Is(err, ErrPrecondition) {
		t.Error(err)
	}
}
