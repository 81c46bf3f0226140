// Command controller measures the controller role with thousands of simulated
// nodes on this machine. The controller is the real binary. The nodes have the real
// node role's port: mutual TLS with certificates of the controller's CA, enrolment,
// reports and CSI, over an engine in memory. The Kubernetes API is a small server
// in this process, without delays of its own.
//
//	go run ./test/scale/controller -nodes 1000 -out out/scale-controller.json
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

type options struct {
	nodes, volumes, snapshots, classes, burst, port int
	binary, out                                     string
}

func main() {
	var o options
	var beNodes bool
	var dir string
	var first int
	flag.IntVar(&o.nodes, "nodes", 1000, "simulated nodes")
	flag.IntVar(&o.volumes, "volumes", 20, "volumes on each node")
	flag.IntVar(&o.snapshots, "snapshots", 2, "snapshots of each volume")
	flag.IntVar(&o.classes, "classes", 2, "storage classes, for each of which the room of every node is asked")
	flag.IntVar(&o.burst, "burst", 100, "claims that come together; csi-provisioner makes up to 100 volumes at a time")
	flag.IntVar(&o.port, "port", 19808, "port of the nodes")
	flag.StringVar(&o.binary, "driver", "bin/csi-dmsnap", "the driver's binary")
	flag.StringVar(&o.out, "out", "", "file for the figures, in JSON; none if empty")
	flag.BoolVar(&beNodes, "be-nodes", false, "be the nodes; this program calls itself so")
	flag.StringVar(&dir, "dir", "", "directory of the nodes' files")
	flag.IntVar(&first, "first", 0, "number of the first node")
	flag.Parse()
	if err := run(o, beNodes, dir, first); err != nil {
		fmt.Fprintln(os.Stderr, "controller:", err)
		os.Exit(1)
	}
}

func run(o options, beNodes bool, dir string, first int) error {
	ctx := context.Background()
	if beNodes {
		return runNodes(ctx, &fleet{dir: dir, port: o.port, volumes: o.volumes, snapshots: o.snapshots, first: first}, o.nodes)
	}
	// Each node has a listener, two connections of each controller, and a few more
	// for a moment.
	limit := syscall.Rlimit{}
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	need := max(2*o.nodes, 5*min(o.nodes, crowdSize)) + 1000
	if limit.Max < uint64(need) {
		return fmt.Errorf("%d nodes need %d open files in a process, and it may have %d; raise ulimit -n, or simulate fewer nodes", o.nodes, need, limit.Max)
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "scale-controller")
	if err != nil {
		return err
	}
	s, err := newSetup(ctx, dir, o)
	if err != nil {
		return fmt.Errorf("%w; logs are in %s", err, dir)
	}
	if err := s.measure(ctx); err != nil {
		return fmt.Errorf("%w; logs are in %s", err, dir)
	}
	if o.out != "" {
		text, err := json.MarshalIndent(s.figures, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.out, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// setup is a simulated cluster with a controller that has made the CA.
type setup struct {
	o          options
	dir        string
	kubeconfig string
	api        *api
	crowd      crowd
	figures    []figure
	claims     int // that were made
}

// figure is a result.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

func (s *setup) note(name string, value float64, unit string) {
	s.figures = append(s.figures, figure{name, value, unit})
	fmt.Printf("%-44s %12.2f %s\n", name, value, unit)
}

func newSetup(ctx context.Context, dir string, o options) (*setup, error) {
	s := &setup{o: o, dir: dir, kubeconfig: filepath.Join(dir, "kubeconfig"), api: newAPI(reviewToken)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go http.Serve(l, s.api)
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{name: a, cluster: {server: 'http://%s'}}]\n"+
		"contexts: [{name: a, context: {cluster: a, user: a}}]\nusers: [{name: a, user: {}}]\n", l.Addr())
	if err := os.WriteFile(s.kubeconfig, []byte(text), 0o600); err != nil {
		return nil, err
	}
	if err := os.Mkdir(filepath.Join(dir, "trust"), 0o700); err != nil {
		return nil, err
	}
	for i := range o.nodes {
		if err := os.WriteFile(filepath.Join(dir, "token-"+nodeName(i)), []byte(tokenOf(i)), 0o600); err != nil {
			return nil, err
		}
	}
	if err := s.makeCA(ctx); err != nil {
		return nil, err
	}
	addNodes(s.api, o.nodes)
	addVolumes(s.api, o.nodes, o.volumes)
	s.crowd, err = startNodes(dir, o)
	return s, err
}

// makeCA starts a controller, which makes the CA, and ends the controller. It
// writes the CA's certificate into the nodes' directory, as the kubelet would.
func (s *setup) makeCA(ctx context.Context) error {
	c, err := startController(s.dir, "first", s.kubeconfig, s.o, s.o.port+1)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var m object
	if _, err := until(ctx, "the controller publishes its CA", func() (bool, error) {
		m = s.api.get("configmaps", namespace, "csi-dmsnap-trust")
		return m != nil, nil
	}); err != nil {
		return err
	}
	text, _ := m["data"].(object)["ca.crt"].(string)
	return errors.Join(os.WriteFile(filepath.Join(s.dir, "trust", "ca.crt"), []byte(text), 0o600), c.end(syscall.SIGTERM))
}
