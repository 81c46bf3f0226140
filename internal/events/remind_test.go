package events

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/reports"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// pools is a node's controller service that records the requests.
type pools struct {
	csi.UnimplementedControllerServer
	mu    sync.Mutex
	asked []string
}

func (p *pools) ControllerGetVolume(_ context.Context, q *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, q.GetVolumeId())
	return nil, status.Error(codes.Unavailable, "the pool is not there")
}

// TestRemind_poolsWithVolumes: a node whose driver has started is asked for one
// volume of each of its pools, whatever it answers. A broken connection to the same
// process does not repeat that.
func TestRemind_poolsWithVolumes(t *testing.T) {
	o, p := cluster(), &pools{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	var watches atomic.Int64
	log, server := reports.NewLog(), (*grpc.Server)(nil)
	serve := func() {
		server = grpc.NewServer(grpc.StreamInterceptor(func(s any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			watches.Add(1)
			return handle(s, stream)
		}))
		roleapi.RegisterReportsServer(server, log)
		csi.RegisterControllerServer(server, p)
		on, listener := server, l
		done.Go(func() { _ = on.Serve(listener) })
	}
	serve()
	t.Cleanup(func() { server.Stop(); done.Wait() })
	restart := func(process bool) { // breaks the connection
		server.Stop()
		if l, err = net.Listen("tcp", l.Addr().String()); err != nil {
			t.Fatal(err)
		}
		if process {
			log = reports.NewLog()
		}
		serve()
	}
	watched := func(times int64) {
		for end := time.Now().Add(20 * time.Second); watches.Load() < times; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("followed %d times, want %d", watches.Load(), times)
			}
		}
	}
	emitter(t, o, Node{Name: "n", Instance: "1", Addresses: []string{l.Addr().String()}})
	wait := func(want ...string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			p.mu.Lock()
			asked := slices.Clone(p.asked)
			p.mu.Unlock()
			if slices.Equal(asked, want) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("asked for %v, want %v", asked, want)
			}
		}
	}
	wait(volume) // once for the pool
	restart(false)
	watched(2)
	wait(volume) // the same process
	restart(true)
	wait(volume, volume)
}

// TestRemind_again: a node is reminded although the volumes cannot be listed when the
// controller begins to follow it, and its stream does not end.
func TestRemind_again(t *testing.T) {
	o, p := cluster(), &pools{}
	var lists atomic.Int64
	o.Client.(*fake.Clientset).PrependReactor("list", "persistentvolumes", func(clienttesting.Action) (bool, runtime.Object, error) {
		return lists.Add(1) <= 2, nil, errors.New("the API server does not answer")
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	roleapi.RegisterReportsServer(server, reports.NewLog())
	csi.RegisterControllerServer(server, p)
	var done sync.WaitGroup
	done.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { server.Stop(); done.Wait() })
	emitter(t, o, Node{Name: "n", Instance: "1", Addresses: []string{l.Addr().String()}})
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		p.mu.Lock()
		asked := slices.Clone(p.asked)
		p.mu.Unlock()
		if slices.Equal(asked, []string{volume}) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("asked for %v after %d lists", asked, lists.Load())
		}
	}
}
