package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/process"
)

// Command is a command that the node runs as root.
type Command struct {
	Argv  []string
	Stdin string
}

// Result is the result of a command.
type Result struct {
	Code           int
	Stdout, Stderr string
}

// agent is the node's first program.
type agent struct {
	config *Config

	mu      sync.Mutex
	kubelet *process.Process // nil while the kubelet is stopped
}

// Run makes the machine a node, and serves commands until the context ends.
func Run(ctx context.Context, c *Config) error {
	// For all programs that are started here, and for the commands.
	path := c.Programs + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	if err := os.Setenv("PATH", path); err != nil {
		return err
	}
	if err := errors.Join(prepareSystem(), nameHost(c.Name), connect(c), networkPods(c)); err != nil {
		return err
	}
	spec, err := containerd(c.Programs, c.shared("containerd.log"))
	if err != nil {
		return err
	}
	engine, err := process.Start("containerd", spec)
	if err != nil {
		return err
	}
	starting, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := engine.Poll(starting, answers(c.Programs)); err != nil {
		return err
	}
	a := &agent{config: c}
	if err := a.startKubelet(); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /exec", a.exec)
	mux.HandleFunc("POST /kubelet/{action}", a.control)
	listener, err := net.Listen("tcp", net.JoinHostPort(c.Address.Addr().String(), strconv.Itoa(Port)))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: mux, BaseContext: func(net.Listener) context.Context { return ctx }}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case <-ctx.Done():
		return server.Close()
	case err := <-served:
		return err
	case <-engine.Done():
		return engine.Err()
	}
}

func (a *agent) startKubelet() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.kubelet != nil {
		return errors.New("the kubelet is already running")
	}
	spec, err := kubelet(a.config)
	if err != nil {
		return err
	}
	a.kubelet, err = process.Start("kubelet", spec)
	return err
}

func (a *agent) stopKubelet() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.kubelet == nil {
		return errors.New("the kubelet is not running")
	}
	// As in a crash: the kubelet must not rely on an orderly end.
	a.kubelet.End(0)
	a.kubelet = nil
	return nil
}

// control starts or stops the kubelet.
func (a *agent) control(w http.ResponseWriter, r *http.Request) {
	var err error
	switch action := r.PathValue("action"); action {
	case "start":
		err = a.startKubelet()
	case "stop":
		err = a.stopKubelet()
	default:
		err = fmt.Errorf("%q is neither start nor stop", action)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
	}
}

// exec runs a command, and kills it when the request ends.
func (a *agent) exec(w http.ResponseWriter, r *http.Request) {
	var c Command
	if err := json.NewDecoder(r.Body).Decode(&c); err != nil || len(c.Argv) == 0 {
		http.Error(w, fmt.Sprintf("no command in the request: %v", err), http.StatusBadRequest)
		return
	}
	cmd := exec.CommandContext(r.Context(), c.Argv[0], c.Argv[1:]...)
	cmd.Stdin = strings.NewReader(c.Stdin)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(Result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()})
}
