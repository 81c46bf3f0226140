package router

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// fake is a node that keeps volumes and snapshots in memory and answers like the
// node role. It runs one operation on a name at a time, is idempotent by name,
// sorts pages by id, and heeds conditions.
type fake struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	roleapi.UnimplementedNamesServer

	t       *testing.T
	name    string
	old     bool // without the service Names
	address string
	server  *grpc.Server
	conns   atomic.Int64 // open connections
	open    sync.Map     // the same, each as a key

	// before runs before the fake looks at a request; its error is the answer.
	before func(ctx context.Context, method string) error
	// after runs when a request is done and before it is answered; its error
	// replaces the answer.
	after func(ctx context.Context, method string) error

	mu           sync.Mutex
	room         int64
	volumes      map[string]*csi.Volume // by name
	snapshots    map[string]*csi.Snapshot
	busy         map[string]bool
	seen         []string // methods, in the order of the requests
	reserved     callmeta.Reservations
	clock        time.Duration // ahead of the time
	capabilities []csi.ControllerServiceCapability_RPC_Type
}

func newFake(t *testing.T, name string, room int64) *fake {
	f := &fake{
		t: t, name: name, room: room, volumes: map[string]*csi.Volume{}, snapshots: map[string]*csi.Snapshot{}, busy: map[string]bool{},
		capabilities: []csi.ControllerServiceCapability_RPC_Type{csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME},
	}
	f.start("127.0.0.1:0")
	t.Cleanup(func() { f.stop() })
	return f
}

// start serves at an address, which may be the fake's former address.
func (f *fake) start(address string) {
	f.t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		f.t.Fatal(err)
	}
	f.address = l.Addr().String()
	f.server = grpc.NewServer(grpc.UnaryInterceptor(f.intercept))
	csi.RegisterIdentityServer(f.server, f)
	csi.RegisterControllerServer(f.server, f)
	if !f.old {
		roleapi.RegisterNamesServer(f.server, f)
	}
	go f.server.Serve(counted{l, f})
}

// cut closes all connections. The fake accepts new connections.
func (f *fake) cut() {
	f.open.Range(func(c, _ any) bool {
		c.(net.Conn).Close()
		return true
	})
}

// stop closes all connections. Requests that run continue until they notice it.
func (f *fake) stop() { f.server.Stop() }

// counted counts the open connections of a fake's listener.
type counted struct {
	net.Listener
	fake *fake
}

func (c counted) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.fake.conns.Add(1)
		conn = &countedConn{Conn: conn, fake: c.fake}
		c.fake.open.Store(conn, true)
	}
	return conn, err
}

type countedConn struct {
	net.Conn
	fake *fake
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() {
		c.fake.conns.Add(-1)
		c.fake.open.Delete(c)
	})
	return c.Conn.Close()
}

func (f *fake) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	method := info.FullMethod[strings.LastIndex(info.FullMethod, "/")+1:]
	if callmeta.Of(ctx).OnlyExisting {
		method = "look:" + method
	}
	if method == "Reserve" {
		f.mu.Lock()
		f.seen = append(f.seen, method)
		f.mu.Unlock()
		return handle(ctx, request)
	}
	if to := callmeta.Node(ctx); to != f.name {
		f.t.Errorf("%s for node %q reached node %q", method, to, f.name)
	}
	f.mu.Lock()
	f.seen = append(f.seen, method)
	before := f.before
	f.mu.Unlock()
	if before != nil {
		if err := before(ctx, method); err != nil {
			return nil, err
		}
	}
	if q, ok := request.(*csi.CreateVolumeRequest); ok {
		f.mu.Lock()
		busy := f.busy[q.GetName()]
		f.busy[q.GetName()] = true
		f.mu.Unlock()
		if busy {
			return nil, aborted("CreateVolume of %s is running", q.GetName())
		}
		defer func() {
			f.mu.Lock()
			delete(f.busy, q.GetName())
			f.mu.Unlock()
		}()
	}
	reply, err := handle(ctx, request)
	f.mu.Lock()
	after := f.after
	f.mu.Unlock()
	if after != nil {
		if err := after(ctx, method); err != nil {
			return nil, err
		}
	}
	return reply, toStatus(err)
}

// requests returns how many requests of a method there were.
func (f *fake) requests(method string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.seen {
		if m == method {
			n++
		}
	}
	return n
}

func (f *fake) has(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.volumes[name] != nil
}

func (f *fake) short() string { return handle.ShortNode(f.name) }

func (f *fake) id(lv string) string {
	return handle.ID{Node: f.short(), Pool: "fast", LV: lv}.String()
}

func (f *fake) topology() *csi.Topology {
	return &csi.Topology{Segments: map[string]string{handle.TopologyKey: f.short()}}
}

func (f *fake) CreateVolume(ctx context.Context, q *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	size := max(q.GetCapacityRange().GetRequiredBytes(), 1)
	have, c := f.volumes[q.GetName()], callmeta.Of(ctx)
	switch {
	case have != nil && have.GetCapacityBytes() != size:
		return nil, errorf(codes.AlreadyExists, "volume %s has %d bytes", q.GetName(), have.GetCapacityBytes())
	case have != nil:
		return &csi.CreateVolumeResponse{Volume: have}, nil
	case c.OnlyExisting:
		if c.Reservation != "" {
			if err := f.reserved.Take(q.GetName(), c.Reservation, time.Now().Add(f.clock)); err != nil {
				return nil, aborted("%v", err)
			}
		}
		return nil, notFound("no volume %s", q.GetName())
	case c.Reservation != "":
		if err := f.reserved.Check(q.GetName(), c.Reservation); err != nil {
			return nil, aborted("%v", err)
		}
	}
	if r := q.GetAccessibilityRequirements().GetRequisite(); len(r) > 0 && !slices.ContainsFunc(r, func(t *csi.Topology) bool {
		return t.GetSegments()[handle.TopologyKey] == f.short()
	}) {
		return nil, errorf(codes.ResourceExhausted, "not accessible from node %s", f.name)
	}
	if size > f.room {
		return nil, errorf(codes.ResourceExhausted, "no room on node %s", f.name)
	}
	f.room -= size
	v := &csi.Volume{
		VolumeId: f.id(q.GetName()), CapacityBytes: size,
		ContentSource: q.GetVolumeContentSource(), AccessibleTopology: []*csi.Topology{f.topology()},
	}
	f.volumes[q.GetName()] = v
	return &csi.CreateVolumeResponse{Volume: v}, nil
}

// Reserve answers each question like a CreateVolume that only looks.
func (f *fake) Reserve(_ context.Context, q *roleapi.ReserveRequest) (*roleapi.ReserveResponse, error) {
	reply := &roleapi.ReserveResponse{}
	for _, n := range q.GetNames() {
		sent, _ := metadata.FromOutgoingContext(callmeta.For(context.Background(), f.name, callmeta.Conditions{OnlyExisting: true, Reservation: n.GetReservation()}))
		_, err := f.intercept(metadata.NewIncomingContext(context.Background(), sent), request(n.GetName(), 1),
			&grpc.UnaryServerInfo{FullMethod: csi.Controller_CreateVolume_FullMethodName}, func(ctx context.Context, q any) (any, error) {
				return f.CreateVolume(ctx, q.(*csi.CreateVolumeRequest))
			})
		s := status.Convert(err)
		if s.Code() == codes.AlreadyExists { // because of the size, which is not in the question
			s = nil
		}
		reply.Answers = append(reply.Answers, &roleapi.NameAnswer{Code: uint32(s.Code()), Message: s.Message()})
	}
	return reply, nil
}

func (f *fake) DeleteVolume(_ context.Context, q *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, v := range f.volumes {
		if v.GetVolumeId() == q.GetVolumeId() {
			f.room += v.GetCapacityBytes()
			delete(f.volumes, name)
		}
	}
	return &csi.DeleteVolumeResponse{}, nil
}

func (f *fake) CreateSnapshot(ctx context.Context, q *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch s := f.snapshots[q.GetName()]; {
	case s != nil && s.GetSourceVolumeId() != q.GetSourceVolumeId() && !callmeta.Of(ctx).OnlyExisting:
		return nil, errorf(codes.AlreadyExists, "snapshot %s is of volume %s", q.GetName(), s.GetSourceVolumeId())
	case s != nil:
		return &csi.CreateSnapshotResponse{Snapshot: s}, nil
	case callmeta.Of(ctx).OnlyExisting:
		return nil, notFound("no snapshot %s", q.GetName())
	}
	s := &csi.Snapshot{SnapshotId: f.id(q.GetName()), SourceVolumeId: q.GetSourceVolumeId(), ReadyToUse: true}
	f.snapshots[q.GetName()] = s
	return &csi.CreateSnapshotResponse{Snapshot: s}, nil
}

func (f *fake) GetCapacity(context.Context, *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &csi.GetCapacityResponse{AvailableCapacity: f.room, MaximumVolumeSize: wrapperspb.Int64(f.room / 2)}, nil
}

func (f *fake) ControllerGetVolume(_ context.Context, q *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range f.volumes {
		if v.GetVolumeId() == q.GetVolumeId() {
			return &csi.ControllerGetVolumeResponse{Volume: v}, nil
		}
	}
	return nil, notFound("no volume %s", q.GetVolumeId())
}

func (f *fake) ListVolumes(_ context.Context, q *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []string
	for _, v := range f.volumes {
		ids = append(ids, v.GetVolumeId())
	}
	ids, next, err := f.page(ids, q.GetStartingToken(), int(q.GetMaxEntries()))
	a := &csi.ListVolumesResponse{NextToken: next}
	for _, id := range ids {
		a.Entries = append(a.Entries, &csi.ListVolumesResponse_Entry{Volume: &csi.Volume{VolumeId: id}})
	}
	return a, err
}

func (f *fake) ListSnapshots(_ context.Context, q *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []string
	for _, s := range f.snapshots {
		if (q.GetSnapshotId() == "" || q.GetSnapshotId() == s.GetSnapshotId()) && (q.GetSourceVolumeId() == "" || q.GetSourceVolumeId() == s.GetSourceVolumeId()) {
			ids = append(ids, s.GetSnapshotId())
		}
	}
	ids, next, err := f.page(ids, q.GetStartingToken(), int(q.GetMaxEntries()))
	a := &csi.ListSnapshotsResponse{NextToken: next}
	for _, id := range ids {
		a.Entries = append(a.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: f.snapshotOf(id)})
	}
	return a, err
}

func (f *fake) page(ids []string, token string, limit int) ([]string, string, error) {
	slices.Sort(ids)
	if token != "" {
		if i, ok := handle.Parse(token); !ok || i.Node != f.short() {
			return nil, "", aborted("not a token of node %s: %q", f.name, token)
		}
		ids = slices.DeleteFunc(ids, func(id string) bool { return id <= token })
	}
	if limit > 0 && limit < len(ids) {
		return ids[:limit], ids[limit-1], nil
	}
	return ids, "", nil
}

func (f *fake) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	a := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range f.capabilities {
		a.Capabilities = append(a.Capabilities, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{
			Rpc: &csi.ControllerServiceCapability_RPC{Type: t},
		}})
	}
	return a, nil
}

func (f *fake) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	a := &csi.GetPluginCapabilitiesResponse{}
	for _, t := range []csi.PluginCapability_Service_Type{csi.PluginCapability_Service_CONTROLLER_SERVICE, csi.PluginCapability_Service_GROUP_CONTROLLER_SERVICE} {
		a.Capabilities = append(a.Capabilities, &csi.PluginCapability{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: t}}})
	}
	return a, nil
}

// node returns the description of a fake that is ready.
func (f *fake) node() Node {
	return Node{Name: f.name, Instance: "pod-of-" + f.name, Addresses: []string{f.address}}
}

// gone returns the description of a fake whose pod is not ready since then.
func (f *fake) gone(since time.Time) Node {
	return Node{Name: f.name, Instance: "pod-of-" + f.name, NotReady: since}
}

func (f *fake) String() string { return fmt.Sprintf("%s at %s", f.name, f.address) }

// snapshotOf returns the snapshot with that id. The caller holds the lock.
func (f *fake) snapshotOf(id string) *csi.Snapshot {
	for _, s := range f.snapshots {
		if s.GetSnapshotId() == id {
			return s
		}
	}
	return nil
}
