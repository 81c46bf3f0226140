package reports

import (
	"context"
	"strconv"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stream passes on the happenings that it is sent.
type stream struct {
	grpc.ServerStreamingServer[roleapi.Happening]
	ctx context.Context
	got chan *roleapi.Happening
}

func (s stream) Context() context.Context { return s.ctx }

func (s stream) SendHeader(metadata.MD) error { return nil }

func (s stream) Send(h *roleapi.Happening) error {
	select {
	case s.got <- h:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// watch starts a stream; stop ends it.
func watch(t *testing.T, l *Log) (got chan *roleapi.Happening, ended chan error, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	got, ended = make(chan *roleapi.Happening), make(chan error, 1)
	go func() { ended <- l.Watch(nil, stream{ctx: ctx, got: got}) }()
	return got, ended, cancel
}

// TestLog_confirm: happenings are sent in order, and again until they are
// confirmed, and the oldest are dropped when there are too many.
func TestLog_confirm(t *testing.T) {
	l := NewLog()
	add := func(id string) {
		l.Add(t.Context(), Happening{Kind: roleapi.Happening_KIND_POOL, ID: id, Reason: "R"})
	}
	confirm := func(epoch string, sequence uint64) {
		t.Helper()
		if _, err := l.Confirm(t.Context(), &roleapi.ConfirmRequest{Epoch: epoch, Sequence: sequence}); err != nil {
			t.Fatal(err)
		}
	}
	add("a")
	got, ended, stop := watch(t, l)
	expect := func(id string, sequence uint64) {
		t.Helper()
		if h := <-got; h.GetId() != id || h.GetSequence() != sequence || h.GetEpoch() != l.epoch || h.GetTime() == nil {
			t.Errorf("got %v, want %s, number %d", h, id, sequence)
		}
	}
	expect("a", 1)
	add("b")
	expect("b", 2)
	add("c")
	expect("c", 3)
	confirm(l.epoch, 2)
	confirm("another epoch", 3)
	stop()
	<-ended
	// Happenings that were not confirmed are sent again, to any controller.
	got, ended, _ = watch(t, l)
	expect("c", 3)
	confirm(l.epoch, 3)
	for i := range room + 10 {
		l.Add(t.Context(), Happening{ID: strconv.Itoa(i)})
	}
	// The first ten may have been sent before the log dropped them.
	last := uint64(3)
	for last < 3+room+10 {
		h := <-got
		if h.GetSequence() <= last || h.GetSequence() > last+11 {
			t.Fatalf("number %d after %d", h.GetSequence(), last)
		}
		last = h.GetSequence()
	}
	if len(l.waiting) != room {
		t.Errorf("%d are kept", len(l.waiting))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l.Run(ctx)
	if err := <-ended; err == nil {
		t.Error("the stream continues after the end")
	}
}
