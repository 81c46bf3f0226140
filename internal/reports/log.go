// Package reports is the node's side of the Reports service. It keeps the happenings of
// the node until the controller has created Kubernetes Events from them.
package reports

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// Happening is a fact on the node that people should know.
type Happening struct {
	Kind    roleapi.Happening_Kind
	ID      string // the CSI id of a volume or snapshot, or a pool's name
	Reason  string // one word in CamelCase
	Message string
	Warning bool
	Lasting bool // the fact stays true, and the node reports it again after every start
}

// room is the number of happenings that a Log keeps. It drops the oldest first.
const room = 1000

// Log keeps happenings in the order of their arrival. It is safe for concurrent use.
type Log struct {
	roleapi.UnimplementedReportsServer

	epoch string

	mu       sync.Mutex
	last     uint64 // sequence number
	waiting  []*roleapi.Happening
	appended chan struct{} // closed when another happening arrives
	closed   bool
}

// NewLog returns an empty log with a new epoch.
func NewLog() *Log {
	return &Log{epoch: string(uuid.NewUUID()), appended: make(chan struct{})}
}

// Add appends a happening.
func (l *Log) Add(ctx context.Context, h Happening) {
	klog.FromContext(ctx).Info("Reporting", "kind", h.Kind, "id", h.ID, "reason", h.Reason, "message", h.Message)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	l.waiting = append(l.waiting, &roleapi.Happening{
		Epoch: l.epoch, Sequence: l.last, Kind: h.Kind, Id: h.ID, Reason: h.Reason, Message: Bounded(h.Message),
		Warning: h.Warning, Lasting: h.Lasting, Time: timestamppb.New(time.Now()),
	})
	if len(l.waiting) > room {
		l.waiting = slices.Delete(l.waiting, 0, 1)
	}
	l.wake()
}

func (l *Log) wake() {
	close(l.appended)
	l.appended = make(chan struct{})
}

// Run ends all streams when ctx ends, so that a server can stop.
func (l *Log) Run(ctx context.Context) {
	<-ctx.Done()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.wake()
}

// after returns the happenings with a higher sequence number, and a channel that is
// closed when there are more.
func (l *Log) after(sequence uint64) (more []*roleapi.Happening, appended <-chan struct{}, closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, h := range l.waiting {
		if h.GetSequence() > sequence {
			more = slices.Clone(l.waiting[i:])
			break
		}
	}
	return more, l.appended, l.closed
}

// Watch sends the happenings that were not confirmed, and then new happenings.
func (l *Log) Watch(_ *roleapi.WatchRequest, stream grpc.ServerStreamingServer[roleapi.Happening]) error {
	if err := stream.SendHeader(metadata.Pairs(roleapi.EpochKey, l.epoch)); err != nil {
		return err
	}
	var sent uint64
	for {
		more, appended, closed := l.after(sent)
		if closed {
			return status.Error(codes.Unavailable, "the node's driver is stopping")
		}
		for _, h := range more {
			if err := stream.Send(h); err != nil {
				return err
			}
			sent = h.GetSequence()
		}
		if len(more) > 0 {
			continue
		}
		select {
		case <-appended:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// Confirm forgets a happening and all happenings before it. A happening of another
// epoch is forgotten already.
func (l *Log) Confirm(_ context.Context, r *roleapi.ConfirmRequest) (*roleapi.ConfirmResponse, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.GetEpoch() == l.epoch {
		l.waiting = slices.DeleteFunc(l.waiting, func(h *roleapi.Happening) bool { return h.GetSequence() <= r.GetSequence() })
	}
	return &roleapi.ConfirmResponse{}, nil
}
