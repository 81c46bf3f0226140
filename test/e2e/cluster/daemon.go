package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/controlplane"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/machine"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/node"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/process"
)

// doorFD is the daemon's descriptor of the socket for clients outside of the
// network namespace. The socket was made outside.
const doorFD = 3

// daemon owns the processes of a cluster.
type daemon struct {
	config *Config
	plane  *controlplane.Plane
	stop   context.CancelFunc

	mu       sync.Mutex
	machines map[string]*process.Process // by node; a node that is off has none
}

// Serve runs the daemon until it is told to stop. It must run in a network
// namespace of its own.
func Serve(ctx context.Context, dir string) error {
	c, err := LoadConfig(dir)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	d := &daemon{config: c, stop: stop, machines: map[string]*process.Process{}}
	defer d.end()
	if err := d.start(ctx); err != nil {
		return err
	}
	_ = os.Remove(c.file(socketFile))
	listener, err := net.Listen("unix", c.file(socketFile))
	if err != nil {
		return fmt.Errorf("socket for commands: %w", err)
	}
	server := &http.Server{Handler: d.handler()}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case <-ctx.Done():
		grace, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = server.Shutdown(grace)
		return nil
	case err := <-served:
		return err
	case err := <-d.failed(ctx):
		return err
	}
}

func (d *daemon) start(ctx context.Context) error {
	var nets []nodeNet
	for i := range d.config.Nodes {
		nets = append(nets, netOf(i+1))
	}
	if err := connectNamespace(nets); err != nil {
		return err
	}
	inherited := os.NewFile(doorFD, "door")
	door, err := net.FileListener(inherited)
	if err != nil {
		return err
	}
	// Otherwise every process of the cluster would inherit the descriptor.
	inherited.Close()
	go forward(door, net.JoinHostPort(controlplane.ServiceIP, "443"))
	if d.plane, err = controlplane.New(d.config.file("controlplane"), d.config.Programs); err != nil {
		return err
	}
	// The nodes boot while the control plane starts, because a kubelet retries.
	for i := range d.config.Nodes {
		if err := d.prepare(ctx, i+1); err != nil {
			return err
		}
		if err := d.boot(NodeName(i + 1)); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	if err := d.plane.Start(ctx); err != nil {
		return err
	}
	return d.plane.AdminKubeconfig(d.config.Kubeconfig(), "https://"+d.config.Address)
}

// prepare makes the disks and the configuration of a node.
func (d *daemon) prepare(ctx context.Context, i int) error {
	name, nets := NodeName(i), netOf(i)
	share := d.config.Logs(name)
	if err := os.MkdirAll(share, 0o755); err != nil {
		return err
	}
	if err := machine.Copy(ctx, d.config.Golden, d.config.file(name+"-system.img")); err != nil {
		return err
	}
	if err := d.plane.NodeKubeconfig(d.config.file(name+"/"+node.KubeconfigFile), name); err != nil {
		return err
	}
	if err := os.WriteFile(d.config.file(name+"/"+node.ClientCAFile), d.plane.Authority(), 0o644); err != nil {
		return err
	}
	c := &node.Config{
		Name: name, Address: nets.address, Gateway: nets.gateway.Addr(), Pods: nets.pods,
		Programs: d.config.Programs, Share: share,
	}
	return c.Save()
}

// boot starts the machine of a node.
func (d *daemon) boot(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.machines[name] != nil {
		return fmt.Errorf("%s is running", name)
	}
	i, err := d.number(name)
	if err != nil {
		return err
	}
	share := d.config.Logs(name)
	p, err := machine.Start(machine.Spec{
		Name: name, Runner: d.config.Runner, Memory: d.config.Memory,
		System: d.config.file(name + "-system.img"), Pool: d.config.file(name + "-pool.img"),
		Tap: netOf(i).tap, Share: share, Log: d.config.file(name + "/machine.log"),
		Command: []string{d.config.Self, "node", share},
	})
	if err == nil {
		d.machines[name] = p
	}
	return err
}

// cut kills the machine of a node, as a power cut would.
func (d *daemon) cut(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.machines[name]
	if p == nil {
		return fmt.Errorf("%s is not running", name)
	}
	delete(d.machines, name)
	machine.Cut(p)
	return nil
}

func (d *daemon) number(name string) (int, error) {
	for i := 1; i <= d.config.Nodes; i++ {
		if NodeName(i) == name {
			return i, nil
		}
	}
	return 0, fmt.Errorf("no node %q: there are %d nodes, beginning with %s", name, d.config.Nodes, NodeName(1))
}

// failed returns a channel that gets an error when a process of the control
// plane ends.
func (d *daemon) failed(ctx context.Context) <-chan error {
	failed := make(chan error, 1)
	for _, p := range d.plane.Processes() {
		go func() {
			select {
			case <-p.Done():
				select {
				case failed <- p.Err():
				default:
				}
			case <-ctx.Done():
			}
		}()
	}
	return failed
}

// end ends all processes, the nodes first.
func (d *daemon) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	var wg sync.WaitGroup
	for _, p := range d.machines {
		wg.Go(func() { machine.Cut(p) })
	}
	wg.Wait()
	if d.plane == nil {
		return
	}
	running := d.plane.Processes()
	for i := len(running) - 1; i >= 0; i-- {
		running[i].End(3 * time.Second)
	}
}

// forward forwards each connection that the door accepts to the address.
func forward(door net.Listener, address string) {
	for {
		outside, err := door.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(100 * time.Millisecond)
			continue
		}
		go func() {
			defer outside.Close()
			inside, err := net.Dial("tcp", address)
			if err != nil {
				return
			}
			defer inside.Close()
			go func() {
				_, _ = io.Copy(inside, outside)
				_ = inside.(*net.TCPConn).CloseWrite()
			}()
			_, _ = io.Copy(outside, inside)
		}()
	}
}
