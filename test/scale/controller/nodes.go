package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"github.com/csi-dmsnap/csi-dmsnap/internal/reports"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
	"github.com/csi-dmsnap/csi-dmsnap/internal/trust"
)

// fleet are simulated nodes in one process. Each has an address of its own, the
// node role's port with its TLS and limits, the Enrolment and Reports services,
// and CSI over an engine in memory.
type fleet struct {
	dir       string // has trust/ca.crt, and a file token-NODE for each node
	port      int
	volumes   int
	snapshots int // of each volume
	first     int // number of the first node

	nodes []*simulated
	calls sync.Map // by method: *atomic.Int64
	conns atomic.Int64
	dials atomic.Int64 // connections since the start
	bytes atomic.Int64 // sent and received
	watch atomic.Int64 // open streams of reports
	asked atomic.Int64 // calls that run
	most  atomic.Int64 // of these at the same time
}

// simulated is one node.
type simulated struct {
	fleet  *fleet
	name   string
	trust  *trust.Node
	log    *reports.Log
	engine *engine
	server *grpc.Server
}

// nodeName returns the full name of the node with that number, address its IP. Names
// sort like numbers.
func nodeName(i int) string { return fmt.Sprintf("node-%05d", i) }

func address(i int) string { return fmt.Sprintf("127.%d.%d.%d", 1+i/62500, i/250%250, 1+i%250) }

func (f *fleet) add(ctx context.Context, i int) error {
	n := &simulated{fleet: f, name: nodeName(i), log: reports.NewLog(), engine: newEngine(nodeName(i), int64(i), f.volumes, f.snapshots)}
	var err error
	n.trust, err = trust.NewNode(ctx, trust.NodeOptions{
		Name: n.name, TrustDir: filepath.Join(f.dir, "trust"), TokenFile: filepath.Join(f.dir, "token-"+n.name),
	})
	if err != nil {
		return err
	}
	f.nodes = append(f.nodes, n)
	return n.serve(i)
}

// window is the number of bytes that the node role lets a client send before it
// reads them.
const window = 64 << 10

func (n *simulated) serve(i int) error {
	l, err := net.Listen("tcp", net.JoinHostPort(address(i), fmt.Sprint(n.fleet.port)))
	if err != nil {
		return err
	}
	n.server = grpc.NewServer(append(n.trust.ServerOptions(), grpc.ChainUnaryInterceptor(n.fleet.count), grpc.ChainStreamInterceptor(n.fleet.countStream),
		grpc.StaticStreamWindowSize(window), grpc.StaticConnWindowSize(window))...)
	csi.RegisterIdentityServer(n.server, n.engine)
	csi.RegisterControllerServer(n.server, n.engine)
	roleapi.RegisterReportsServer(n.server, n.log)
	roleapi.RegisterNamesServer(n.server, n.engine)
	n.trust.Register(n.server)
	go n.server.Serve(counted{l, n.fleet})
	return nil
}

// count counts calls by method. A question for an existing name counts apart.
func (f *fleet) count(ctx context.Context, q any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	f.called(info.FullMethod)
	running := f.asked.Add(1)
	defer f.asked.Add(-1)
	for most := f.most.Load(); running > most && !f.most.CompareAndSwap(most, running); most = f.most.Load() {
	}
	return handle(ctx, q)
}

func (f *fleet) countStream(server any, s grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	f.called(info.FullMethod)
	if strings.HasSuffix(info.FullMethod, "/Watch") {
		f.watch.Add(1)
		defer f.watch.Add(-1)
	}
	return handle(server, s)
}

func (f *fleet) called(method string) {
	n, _ := f.calls.LoadOrStore(method[strings.LastIndex(method, "/")+1:], &atomic.Int64{})
	n.(*atomic.Int64).Add(1)
}

// counted counts a listener's connections and their bytes.
type counted struct {
	net.Listener
	fleet *fleet
}

func (c counted) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c.fleet.conns.Add(1)
	c.fleet.dials.Add(1)
	return &countedConn{Conn: conn, fleet: c.fleet}, nil
}

type countedConn struct {
	net.Conn
	fleet *fleet
	once  sync.Once
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.fleet.bytes.Add(int64(n))
	return n, err
}

func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.fleet.bytes.Add(int64(n))
	return n, err
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.fleet.conns.Add(-1) })
	return c.Conn.Close()
}

// counts are the fleet's figures. Calls and Most start again with each reading.
type counts struct {
	Calls                      map[string]int64
	Enrolled                   int
	Conns, Dials, Bytes, Watch int64
	Most                       int64
}

func (f *fleet) counts() counts {
	c := counts{
		Calls: map[string]int64{}, Conns: f.conns.Load(), Dials: f.dials.Load(), Bytes: f.bytes.Load(), Watch: f.watch.Load(),
		Most: f.most.Swap(0),
	}
	f.calls.Range(func(method, n any) bool {
		if count := n.(*atomic.Int64).Swap(0); count > 0 {
			c.Calls[method.(string)] = count
		}
		return true
	})
	for _, n := range f.nodes {
		if n.trust.Enrolled() {
			c.Enrolled++
		}
	}
	return c
}

// cut closes all connections and listeners, as when a network fails with resets.
func (f *fleet) cut() {
	for _, n := range f.nodes {
		n.server.Stop()
	}
}

func (f *fleet) back() error {
	for i, n := range f.nodes {
		if err := n.serve(f.first + i); err != nil {
			return err
		}
	}
	return nil
}

// report makes every node report one happening.
func (f *fleet) report(ctx context.Context) {
	for _, n := range f.nodes {
		n.log.Add(ctx, reports.Happening{Kind: roleapi.Happening_KIND_POOL, ID: "fast", Reason: "PoolFull", Message: "no extent is left", Warning: true})
	}
}

// obey carries out commands, one a line, and answers each with a line of JSON.
func (f *fleet) obey(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var err error
		switch lines.Text() {
		case "counts":
		case "cut":
			f.cut()
		case "back":
			err = f.back()
		case "report":
			f.report(ctx)
		default:
			err = fmt.Errorf("unknown command %q", lines.Text())
		}
		if err != nil {
			return err
		}
		if err := json.NewEncoder(out).Encode(f.counts()); err != nil {
			return err
		}
	}
	return lines.Err()
}

// runNodes is the process of the nodes.
func runNodes(ctx context.Context, f *fleet, number int) error {
	for i := range number {
		if err := f.add(ctx, f.first+i); err != nil {
			return err
		}
	}
	fmt.Println("{}") // ready
	return f.obey(ctx, os.Stdin, os.Stdout)
}
