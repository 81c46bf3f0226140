package router

import (
	"context"
	"fmt"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
)

// method is an RPC of the Controller service.
type method[Q, A any] func(csi.ControllerClient, context.Context, Q, ...grpc.CallOption) (A, error)

// call forwards a request to the node with that short name, see invoke.
func call[Q, A any](ctx context.Context, r *Router, short string, m method[Q, A], request Q, c callmeta.Conditions) (A, error) {
	return invoke(ctx, r, short, c, func(ctx context.Context, conn grpc.ClientConnInterface) (A, error) {
		return m(csi.NewControllerClient(conn), ctx, request)
	})
}

// invoke calls the node with that short name. The call has the caller's deadline
// and is cancelled with it; the node finishes what it has begun by then. invoke
// repeats the call once if the connection failed before the request was written.
// Errors: those of the node; UNAVAILABLE names the node.
func invoke[A any](ctx context.Context, r *Router, short string, c callmeta.Conditions, f func(context.Context, grpc.ClientConnInterface) (A, error)) (A, error) {
	var none A
	n, release, err := r.fleet.use(short)
	if err != nil {
		return none, err
	}
	defer release()
	ctx = callmeta.For(ctx, n.Name, c)
	attempt, written := recordWrite(ctx)
	answer, err := f(attempt, n.link.conn)
	if status.Code(err) == codes.Unavailable && !written.Load() && n.link.reconnect(ctx) {
		answer, err = f(ctx, n.link.conn)
	}
	if err != nil {
		return none, named(err, n.Name)
	}
	return answer, nil
}

// named adds the node's name to an error that may come from the connection,
// because the connection knows only addresses.
func named(err error, node string) error {
	if isFalse(err) {
		return err // it names the node already
	}
	s := status.Convert(err).Proto()
	if codes.Code(s.GetCode()) == codes.Unavailable {
		s.Message = fmt.Sprintf("node %s: %s", node, s.GetMessage())
	}
	return status.ErrorProto(s)
}

// answer is the answer of one of several nodes.
type answer[A any] struct {
	node  *member
	value A
	err   error
}

// askers is the number of nodes that ask calls at the same time.
const askers = 64

// ask calls several nodes concurrently and returns their answers in the order of
// the nodes.
func ask[A any](nodes []*member, f func(*member) (A, error)) []answer[A] {
	answers := make([]answer[A], len(nodes))
	slots := make(chan struct{}, askers)
	var wg sync.WaitGroup
	for i, n := range nodes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			v, err := f(n)
			answers[i] = answer[A]{n, v, err}
		})
	}
	wg.Wait()
	return answers
}
