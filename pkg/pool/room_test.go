package pool

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// roomPool is a pool in which nothing runs.
func roomPool(c Config) *Pool {
	return newPool(context.Background(), c, Options{})
}

// Who makes a volume waits for trash that will be wiped, where that makes room, and for
// no other.
func TestRoomInTrash(t *testing.T) {
	const limit = 2 * stuckAfter
	for _, c := range []struct {
		what    string
		n       lvm2.Extents
		rounds  int // that have failed
		unclear bool
		pending bool
	}{
		{"there is room", 11, limit, false, false},
		{"there will be", 19, 0, false, true},
		{"there will be, once is no news", 19, stuckAfter - 1, false, true},
		{"not with the reserve", 20, 0, false, false},
		{"it cannot be wiped", 19, stuckAfter, false, false},
		{"nothing is wiped", 19, 0, true, false},
	} {
		v := rollbackGroup(t)
		p := roomPool(Config{LayerReserve: 10}) // of 499 extents
		v.free = rangeSet{{Start: 100, Count: 60}}
		v.trash = []*lvm2.LV{v.volumeByLV("bare").lv} // of 8
		if c.unclear {
			v.unclear = errors.New("a tag")
		}
		next := p.wiper.freed()
		for range c.rounds {
			p.wiper.note(v.trash, map[lvm2.ID]bool{v.trash[0].ID: true}, nil)
		}
		err := p.checkRoom(v, anyKind, c.n)
		var pending *PendingError
		if errors.As(err, &pending) != c.pending || !c.pending && c.n > 11 != errors.Is(err, ErrNoSpace) {
			t.Errorf("%s: %v", c.what, err)
		}
		select {
		case <-next:
			if c.rounds < stuckAfter {
				t.Errorf("%s: who waits is told", c.what)
			}
		default:
			if c.rounds >= stuckAfter {
				t.Errorf("%s: who waits is not told", c.what)
			}
		}
		if p.wiper.note(v.trash, nil, nil); p.wiper.stuck(v.trash[0].ID) {
			t.Errorf("%s: it is wiped, and counts as stuck", c.what)
		}
	}
}

// A cut waits a moment for room, one at a time, and says then that there is none.
func TestOnceRoom(t *testing.T) {
	p := roomPool(Config{})
	none := &noRoomYet{ErrNoSpace}
	ctx, cancel := context.WithTimeout(context.Background(), 400*time.Millisecond)
	defer cancel()
	tries, ended := 0, make(chan error)
	go func() {
		_, err := onceRoom(ctx, p, func() (size.Bytes, error) { tries++; return 0, none })
		ended <- err
	}()
	time.Sleep(50 * time.Millisecond)
	others := 0
	go func() {
		_, err := onceRoom(ctx, p, func() (size.Bytes, error) { others++; return 0, none })
		ended <- err
	}()
	time.Sleep(50 * time.Millisecond)
	p.wiper.lookAgain()
	for range 2 {
		if err := <-ended; !errors.Is(err, ErrNoSpace) || ctx.Err() != nil {
			t.Errorf("%v, and for the caller %v", err, ctx.Err())
		}
	}
	if tries != 3 || others > 2 { // at once, with the key, and when something was free
		t.Errorf("tried %d times, and %d times by who came later", tries, others)
	}
	if _, err := onceRoom(context.Background(), p, func() (size.Bytes, error) { return 0, ErrPrecondition }); !errors.Is(err, ErrPrecondition) {
		t.Error(err)
	}
}
