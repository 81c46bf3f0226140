package events

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
// volume of each of its pools, whatever it answers.
func TestRemind_poolsWithVolumes(t *testing.T) {
	o, p := cluster(), &pools{}
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
		if slices.Equal(asked, []string{volume}) { // once for the pool
			return
		}
		if time.Now().After(end) {
			t.Fatalf("asked for %v", asked)
		}
	}
}
