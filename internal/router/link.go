package router

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/stats"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

const (
	maxRequest   = 4 << 20         // bytes that a node accepts
	window       = 512 << 10       // bytes that a node may send before the router reads them
	readBuffer   = 4 << 10         // bytes; gRPC's 32 KiB for each of thousands of idle connections are most of what they take
	connectLimit = 5 * time.Second // to establish a connection
	silenceLimit = 20 * time.Second
)

// link is a connection to one node's driver. The first call makes it. It closes
// itself after retire, when the last call on it has ended.
type link struct {
	fleet        *fleet
	node         Node
	capabilities sync.Map // of the process, by their type, see remembered

	mu      sync.Mutex
	conn    *grpc.ClientConn // nil until the first call: even an unused one has goroutines
	calls   int
	retired bool
}

// dial returns a link to a node that nobody has called yet.
func (f *fleet) dial(n Node) *link { return &link{fleet: f, node: n} }

// connect prepares a connection. The first call establishes it.
func (f *fleet) connect(n Node) *grpc.ClientConn {
	addresses := manual.NewBuilderWithScheme("dmsnap")
	var state resolver.State
	for _, a := range n.Addresses {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: a})
	}
	addresses.InitialState(state)
	conn, err := grpc.NewClient("dmsnap:///"+n.Name,
		grpc.WithResolvers(addresses),
		grpc.WithTransportCredentials(f.credentials(n.Name)),
		grpc.WithContextDialer(dialTCP),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithStatsHandler(writeRecorder{}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 2, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: connectLimit,
		}),
		grpc.WithUnaryInterceptor(witness{n.Name, handle.ShortNode(n.Name)}.intercept),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer), grpc.MaxCallSendMsgSize(maxRequest)),
		grpc.WithMaxHeaderListSize(maxHeaders),
		grpc.WithStaticStreamWindowSize(window), grpc.WithStaticConnWindowSize(window),
		grpc.WithReadBufferSize(readBuffer),
	)
	if err != nil {
		panic(fmt.Sprintf("connection to node %s: %v", n.Name, err)) // the options are wrong for every node
	}
	return conn
}

// dialTCP opens a connection on which the kernel notices that a node is gone, even
// while a call waits for its answer. gRPC's own pings would work only if every
// node allowed them.
func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silenceLimit / 2, Interval: silenceLimit / 8, Count: 4},
		Control: func(_, _ string, c syscall.RawConn) (err error) {
			refused := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silenceLimit.Milliseconds()))
			})
			if refused != nil {
				return refused
			}
			return err
		},
	}
	return d.DialContext(ctx, "tcp", address)
}

func (l *link) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls++
	if l.conn == nil {
		l.conn = l.fleet.connect(l.node)
	}
}

func (l *link) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls--
	l.closeIfUnused()
}

// retire closes the connection as soon as no call uses it.
func (l *link) retire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.retired = true
	l.closeIfUnused()
}

func (l *link) closeIfUnused() {
	if l.retired && l.calls == 0 && l.conn != nil {
		if err := l.conn.Close(); err != nil {
			klog.ErrorS(err, "Closing a connection", "node", l.conn.Target())
		}
	}
}

// reconnect tries once to establish the connection.
func (l *link) reconnect(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	l.conn.ResetConnectBackoff()
	tried := false
	for {
		state := l.conn.GetState()
		switch state {
		case connectivity.Ready:
			return true
		case connectivity.Shutdown:
			return false
		case connectivity.Idle:
			l.conn.Connect()
		case connectivity.Connecting:
			tried = true
		case connectivity.TransientFailure:
			if tried {
				return false
			}
		}
		if !l.conn.WaitForStateChange(ctx, state) {
			return false
		}
	}
}

// writeRecorder records when a request may have left this process.
type writeRecorder struct{}

type writtenKey struct{}

// recordWrite returns a context for a call. The call sets written before gRPC
// hands its request to the connection.
func recordWrite(ctx context.Context) (_ context.Context, written *atomic.Bool) {
	written = &atomic.Bool{}
	return context.WithValue(ctx, writtenKey{}, written), written
}

func (writeRecorder) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if _, ok := s.(*stats.OutHeader); ok {
		if written, ok := ctx.Value(writtenKey{}).(*atomic.Bool); ok {
			written.Store(true)
		}
	}
}

func (writeRecorder) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (writeRecorder) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (writeRecorder) HandleConn(context.Context, stats.ConnStats) {}
