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

// call forwards a request to the node of that short name, as invoke does.
func call[Q, A any](ctx context.Context, r *Router, short string, m method[Q, A], request Q, c callmeta.Conditions) (A, error) {
	return invoke(ctx, r, short, c, func(ctx context.Context, conn grpc.ClientConnInterface) (A, error) {
		return m(csi.NewControllerClient(conn), ctx, request)
	})
}

// invoke calls the node of that short name. The caller's deadline and its
// cancellation go with it; what the node has begun by then it finishes by
// itself. The call is repeated once, if the connection failed before the
// request was written. Errors are the node's; UNAVAILABLE names it.
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

// named puts the node's name into an error that the connection may have made,
// which knows addresses only.
func named(err error, node string) error {
	if isFalse(err) {
		return err // it has the name
	}
	s := status.Convert(err).Proto()
	if codes.Code(s.GetCode()) == codes.Unavailable {
		s.Message = fmt.Sprintf("node %s: %s", node, s.GetMessage())
	}
	return status.ErrorProto(s)
}

// answer is what one of several nodes answered.
type answer[A any] struct {
	node  member
	value A
	err   error
}

// askers bounds how many nodes are asked at the same time.
const askers = 64

// ask calls several nodes at the same time and returns their answers in the
// order of the nodes.
func ask[A any](nodes []member, f func(member) (A, error)) []answer[A] {
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
