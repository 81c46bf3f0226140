package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// child starts a program that the kernel ends with this one. Its log goes to a file.
func child(dir, name, program string, args ...string) (*exec.Cmd, error) {
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(filepath.Join(dir, name+".log"))
	cmd.Stderr = log
	return cmd, err
}

// crowd are the processes of the simulated nodes.
type crowd []*nodesProcess

type nodesProcess struct {
	in  io.Writer
	out *json.Decoder
}

// crowdSize is the number of nodes in a process, so that it needs fewer open files
// than most machines allow.
const crowdSize = 2500

func startNodes(dir string, o options) (all crowd, err error) {
	for first := 0; first < o.nodes; first += crowdSize {
		p, err := startProcess(dir, o, first, min(crowdSize, o.nodes-first))
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

func startProcess(dir string, o options, first, number int) (*nodesProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd, err := child(dir, fmt.Sprint("nodes-", first), self, "-be-nodes", "-dir", dir, "-port", strconv.Itoa(o.port), "-nodes", strconv.Itoa(number), "-first", strconv.Itoa(first),
		"-volumes", strconv.Itoa(o.volumes), "-snapshots", strconv.Itoa(o.snapshots))
	if err != nil {
		return nil, err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &nodesProcess{in, json.NewDecoder(bufio.NewReader(out))}
	var ready counts
	return c, c.out.Decode(&ready)
}

// order has the nodes carry out a command, and returns their figures since the last
// order.
func (c crowd) order(command string) (counts, error) {
	sum := counts{Calls: map[string]int64{}}
	for _, p := range c {
		f, err := p.order(command)
		if err != nil {
			return sum, err
		}
		for method, n := range f.Calls {
			sum.Calls[method] += n
		}
		sum.Enrolled += f.Enrolled
		sum.Conns, sum.Dials, sum.Bytes, sum.Watch = sum.Conns+f.Conns, sum.Dials+f.Dials, sum.Bytes+f.Bytes, sum.Watch+f.Watch
		sum.Most += f.Most
	}
	return sum, nil
}

func (c *nodesProcess) order(command string) (f counts, err error) {
	if _, err := fmt.Fprintln(c.in, command); err != nil {
		return f, err
	}
	return f, c.out.Decode(&f)
}

// controller is a process of the controller role.
type controller struct {
	cmd  *exec.Cmd
	http string
	conn *grpc.ClientConn
	csi.ControllerClient
	identity csi.IdentityClient
}

func startController(dir, name, kubeconfig string, o options, httpPort int) (*controller, error) {
	socket := filepath.Join(dir, name+".sock")
	c := &controller{http: fmt.Sprintf("127.0.0.1:%d", httpPort)}
	var err error
	c.cmd, err = child(dir, name, o.binary, "controller", "--endpoint", "unix://"+socket, "--namespace", namespace, "--pod-name", name,
		"--kubeconfig", kubeconfig, "--http", c.http, "--node-port", strconv.Itoa(o.port))
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	c.conn, err = grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(256<<20)),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}))
	if err != nil {
		return nil, err
	}
	c.ControllerClient, c.identity = csi.NewControllerClient(c.conn), csi.NewIdentityClient(c.conn)
	return c, nil
}

// end sends the signal and waits for the end.
func (c *controller) end(sig syscall.Signal) error {
	if err := c.cmd.Process.Signal(sig); err != nil {
		return err
	}
	err := c.cmd.Wait()
	if exit := new(exec.ExitError); errors.As(err, &exit) && sig == syscall.SIGKILL {
		err = nil
	}
	return errors.Join(err, c.conn.Close())
}

// state is what a process uses.
type state struct {
	RSS, Peak  int64 // bytes
	Goroutines int
	CPU        time.Duration // since its start
}

func (c *controller) state() (s state, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			s.RSS = n << 10
		case "VmHWM:":
			s.Peak = n << 10
		}
	}
	text, err = os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		return s, err
	}
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')'):]))
	const user, system, tick = 12, 13, 10 * time.Millisecond // proc(5), counted after the name
	for _, i := range []int{user - 1, system - 1} {
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return s, err
		}
		s.CPU += time.Duration(n) * tick
	}
	s.Goroutines = int(c.metric("go_goroutines"))
	return s, nil
}

// metric returns a figure of /metrics; 0 if it is not there.
func (c *controller) metric(name string) float64 {
	reply, err := http.Get("http://" + c.http + "/metrics")
	if err != nil {
		return 0
	}
	defer reply.Body.Close()
	lines := bufio.NewScanner(reply.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			v, _ := strconv.ParseFloat(value, 64)
			return v
		}
	}
	return 0
}

// ready reports whether the controller says that it is ready.
func (c *controller) ready() bool {
	reply, err := http.Get("http://" + c.http + "/readyz")
	if err != nil {
		return false
	}
	defer reply.Body.Close()
	return reply.StatusCode == http.StatusOK
}

// until waits until a condition holds, and returns how long that took.
func until(ctx context.Context, what string, holds func() (bool, error)) (time.Duration, error) {
	begin := time.Now()
	for {
		ok, err := holds()
		if err != nil || ok {
			return time.Since(begin), err
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%s: not after %v", what, time.Since(begin).Round(time.Second))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
