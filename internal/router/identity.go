package router

import (
	"context"
	"reflect"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// capabilitiesLimit is how long nodes have to answer which capabilities they have.
const capabilitiesLimit = 5 * time.Second

// GetPluginInfo returns the driver's name and the router's version.
func (r *Router) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: handle.Driver, VendorVersion: r.version}, nil
}

// Probe answers whether any node is ready. The sidecars wait for that, because the
// driver has the capabilities of its nodes.
func (r *Router) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(len(r.fleet.ready()) > 0)}, nil
}

// GetPluginCapabilities returns the capabilities that all ready nodes have,
// without the services that the router does not serve.
func (r *Router) GetPluginCapabilities(ctx context.Context, q *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	common, err := commonCapabilities(ctx, r, func(ctx context.Context, n *member) ([]*csi.PluginCapability, error) {
		a, err := invoke(ctx, r, n.short, callmeta.Conditions{}, func(ctx context.Context, conn grpc.ClientConnInterface) (*csi.GetPluginCapabilitiesResponse, error) {
			return csi.NewIdentityClient(conn).GetPluginCapabilities(ctx, q)
		})
		return a.GetCapabilities(), err
	})
	if err != nil {
		return nil, err
	}
	a := &csi.GetPluginCapabilitiesResponse{}
	for _, c := range common {
		switch c.GetService().GetType() {
		case csi.PluginCapability_Service_GROUP_CONTROLLER_SERVICE, csi.PluginCapability_Service_SNAPSHOT_METADATA_SERVICE:
		default:
			a.Capabilities = append(a.Capabilities, c)
		}
	}
	return a, nil
}

// ControllerGetCapabilities returns the capabilities that all ready nodes have.
func (r *Router) ControllerGetCapabilities(ctx context.Context, q *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	common, err := commonCapabilities(ctx, r, func(ctx context.Context, n *member) ([]*csi.ControllerServiceCapability, error) {
		a, err := call(ctx, r, n.short, csi.ControllerClient.ControllerGetCapabilities, q, callmeta.Conditions{})
		return a.GetCapabilities(), err
	})
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetCapabilitiesResponse{Capabilities: common}, nil
}

// commonCapabilities returns the capabilities that all ready nodes which answer
// have in common. Errors: UNAVAILABLE if no node answers.
func commonCapabilities[C proto.Message](ctx context.Context, r *Router, of func(context.Context, *member) ([]C, error)) ([]C, error) {
	asking, cancel := context.WithTimeout(ctx, capabilitiesLimit)
	defer cancel()
	answers := ask(r.fleet.ready(), func(n *member) ([]C, error) {
		return remembered(n.link, func() ([]C, error) { return of(asking, n) })
	})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	var common []C
	var failed error
	answered := false
	for _, a := range answers {
		switch {
		case a.err != nil:
			failed = a.err
		case !answered:
			common, answered = a.value, true
		default:
			common = intersect(common, a.value)
		}
	}
	switch {
	case answered:
		return common, nil
	case failed != nil:
		return nil, failed
	}
	return nil, unavailable("no node is ready, so the capabilities of the driver are unknown")
}

// remembered returns the capabilities of one kind that a process has told before. It
// asks for them once, because they do not change while the process runs: each sidecar
// asks for them, and with thousands of nodes that is most of a start's work.
func remembered[C proto.Message](l *link, ask func() ([]C, error)) ([]C, error) {
	kind := reflect.TypeFor[C]()
	if known, ok := l.capabilities.Load(kind); ok {
		return known.([]C), nil
	}
	told, err := ask()
	if err == nil {
		l.capabilities.Store(kind, told)
	}
	return told, err
}

func intersect[C proto.Message](a, b []C) []C {
	var both []C
	for _, x := range a {
		for _, y := range b {
			if proto.Equal(x, y) {
				both = append(both, x)
				break
			}
		}
	}
	return both
}
