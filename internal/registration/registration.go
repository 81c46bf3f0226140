// Package registration registers the driver with the kubelet, by version 1 of the
// kubelet's plugin registration. The kubelet finds a socket in its plugins_registry
// directory, asks at the socket which plugin it is, and reports the result.
package registration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/csi-dmsnap/csi-dmsnap/internal/sockets"
)

// Options describe the driver to register.
type Options struct {
	Driver     string // the CSI driver's name
	Endpoint   string // its socket as the kubelet sees it
	KubeletDir string // the kubelet's root directory, at the same path as on the host
	// Ready fails as long as the driver does not answer. The kubelet asks the driver
	// immediately after the registration, and does not retry.
	Ready func(context.Context) error
}

// Registration offers the driver to the kubelet. It is safe for concurrent use.
type Registration struct {
	registerapi.UnimplementedRegistrationServer

	o       Options
	refused chan string // the kubelet's reasons

	mu         sync.Mutex
	registered bool
}

// New returns a registration that does nothing until Run.
func New(o Options) *Registration {
	return &Registration{o: o, refused: make(chan string, 1)}
}

// Path returns the path of the socket that the kubelet looks for.
func (r *Registration) Path() string {
	return filepath.Join(r.o.KubeletDir, "plugins_registry", r.o.Driver+"-reg.sock")
}

// Registered reports whether the kubelet has registered the driver.
func (r *Registration) Registered() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.registered
}

func (r *Registration) set(registered bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.registered = registered
}

// GetInfo tells the kubelet which plugin serves the socket.
func (r *Registration) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{
		Type: registerapi.CSIPlugin, Name: r.o.Driver, Endpoint: r.o.Endpoint,
		SupportedVersions: []string{"1.0.0"}, // of CSI; the kubelet reads only the major version
	}, nil
}

// NotifyRegistrationStatus receives the result of the registration from the kubelet.
func (r *Registration) NotifyRegistrationStatus(ctx context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	r.set(s.GetPluginRegistered())
	if s.GetPluginRegistered() {
		klog.FromContext(ctx).Info("The kubelet registered the driver", "driver", r.o.Driver)
	} else {
		select {
		case r.refused <- s.GetError():
		default: // one reason is enough
		}
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}

// Times between looks at the socket, and between attempts. Variables for the
// tests.
var (
	interval   = time.Second
	minBackoff = time.Second
	maxBackoff = time.Minute
)

// Run offers the driver until ctx ends, and offers it again whenever the socket is
// gone. A kubelet that starts looks for sockets, but its directory may have been
// emptied before.
func (r *Registration) Run(ctx context.Context) {
	log := klog.FromContext(ctx).WithValues("socket", r.Path())
	backoff := minBackoff
	for ctx.Err() == nil {
		err := r.o.Ready(ctx)
		if err == nil {
			err = r.offer(ctx)
			if r.Registered() {
				backoff = minBackoff // this attempt succeeded
			}
		}
		r.set(false)
		if ctx.Err() != nil {
			return
		}
		log.Info("Not registered with the kubelet; retrying", "err", err, "in", backoff)
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// offer serves the socket until the socket is gone, the kubelet refuses the driver, or
// ctx ends.
func (r *Registration) offer(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(r.Path()), 0o750); err != nil {
		return err
	}
	listener, err := sockets.Listen(r.Path())
	if err != nil {
		return err
	}
	// Close would unlink the path, which may be another process's socket by then.
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	own, err := os.Lstat(r.Path())
	if err != nil {
		listener.Close()
		return err
	}
	select {
	case <-r.refused: // by a former kubelet
	default:
	}
	server := grpc.NewServer()
	registerapi.RegisterRegistrationServer(server, r)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		if now, err := os.Lstat(r.Path()); err == nil && os.SameFile(own, now) {
			os.Remove(r.Path())
		}
		late := time.AfterFunc(time.Second, server.Stop)
		defer late.Stop()
		server.GracefulStop() // the kubelet may be waiting for a reply
	}()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-served:
			return fmt.Errorf("serve at %s: %w", r.Path(), err)
		case reason := <-r.refused:
			return fmt.Errorf("the kubelet refuses the driver: %s", reason)
		case <-tick.C:
			if now, err := os.Lstat(r.Path()); err != nil || !os.SameFile(own, now) {
				return errors.New("the socket was removed or replaced")
			}
		}
	}
}
