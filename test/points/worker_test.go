//go:build kernel && points

package points

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/point"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/audit"
)

const (
	openLimit   = 15 * time.Second // how long opening a pool may take, whatever was interrupted
	callLimit   = 20 * time.Second
	deathLimit  = 10 * time.Second // how long a killed process may take to end
	pendingWait = 5 * time.Millisecond
	workerFD    = 3
	workerVar   = "DMSNAP_POINTS_WORKER"
)

func TestMain(m *testing.M) {
	if os.Getenv(workerVar) == "" {
		os.Exit(m.Run())
	}
	conn, err := net.FileConn(os.NewFile(workerFD, "caller"))
	if err == nil {
		server := rpc.NewServer()
		if err = server.RegisterName("W", &Worker{}); err == nil {
			server.ServeConn(conn)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Worker has the pool, in a process of its own that can be killed. The test
// calls it through net/rpc, and opens and closes pools one after the other.
type Worker struct {
	set    *pool.Set // of pool and second, if there is a second pool
	pool   *pool.Pool
	second *pool.Pool
	config pool.Config
}

// Call is an operation for the worker.
type Call struct {
	Op     string
	Name   string // the CSI name of the new volume or snapshot
	LV     string // the logical volume of the volume or snapshot
	Size   size.Bytes
	Source pool.Source

	ReadOnly, Transient bool
	Second              bool // in the second pool
}

// Reply is the result of a Call.
type Reply struct {
	LV    string
	Size  size.Bytes
	Path  string
	Error string
}

// Open opens a pool or two, as a starting driver does.
func (w *Worker) Open(configs []pool.Config, _ *struct{}) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), openLimit)
	defer cancel()
	w.config = configs[0]
	if len(configs) == 1 {
		w.pool, err = pool.Open(ctx, w.config, pool.Options{})
		return err
	}
	if w.set, err = pool.OpenSet(ctx, configs, pool.Options{}); err != nil {
		return err
	}
	if w.pool, err = w.set.Pool(configs[0].Name); err == nil {
		w.second, err = w.set.Pool(configs[1].Name)
	}
	return err
}

// Close closes the pool.
func (w *Worker) Close(struct{}, *struct{}) error {
	if w.pool == nil {
		return nil
	}
	p, s := w.pool, w.set
	w.pool, w.second, w.set = nil, nil, nil
	if s != nil {
		return s.Close()
	}
	return p.Close()
}

// Arm has the process kill itself at the n-th point from now on, or at none if
// n is 0.
func (w *Worker) Arm(n int, _ *struct{}) error {
	point.Arm(n, func(where string) {
		fmt.Fprintf(os.Stderr, "cut %s\n", where)
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	})
	return nil
}

// Passed returns the points since Arm.
func (w *Worker) Passed(_ struct{}, passed *[]string) error {
	*passed = point.Passed()
	return nil
}

// List returns the volumes and snapshots of the pool, or of the second pool.
func (w *Worker) List(second bool, l *audit.Listing) (err error) {
	p := w.pool
	if second {
		p = w.second
	}
	if l.Volumes, err = p.Volumes(context.Background()); err != nil {
		return err
	}
	l.Snapshots, err = p.Snapshots(context.Background())
	return err
}

// Do performs an operation, and retries it while the pool reports it as
// pending.
func (w *Worker) Do(c Call, r *Reply) error {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	for {
		err := w.do(ctx, c, r)
		var pending *pool.PendingError
		if errors.As(err, &pending) && ctx.Err() == nil {
			time.Sleep(pendingWait)
			continue
		}
		if err != nil {
			r.Error = err.Error()
		}
		return nil
	}
}

func (w *Worker) do(ctx context.Context, c Call, r *Reply) (err error) {
	var v pool.Volume
	p := w.pool
	if c.Second {
		p = w.second
	}
	switch c.Op {
	case "copy":
		v, err = w.second.CopyVolume(ctx, pool.VolumeSpec{Name: c.Name, Mode: pool.Block, Source: c.Source, SourcePool: w.config.Name}, w.pool)
	case "mode":
		err = p.SetMode(ctx, c.LV, pool.Filesystem, "ext4")
	case "create":
		v, err = w.pool.CreateVolume(ctx, pool.VolumeSpec{Name: c.Name, Size: c.Size, Mode: pool.Block, Source: c.Source, ReadOnly: c.ReadOnly, Transient: c.Transient})
	case "snapshot":
		var s pool.Snapshot
		s, err = w.pool.CreateSnapshot(ctx, c.Name, c.LV)
		v.LV, v.Size = s.LV, s.Size
	case "expand":
		v, err = w.pool.ExpandVolume(ctx, c.LV, c.Size, 0)
	case "rollback": // as the command does it, while the pool is open
		var rolled pool.RolledBack
		rolled, err = pool.Rollback(ctx, w.config, pool.Options{}, pool.RollbackSpec{Volume: c.LV, Snapshot: c.Source.LV})
		v = rolled.Volume
	case "adopt":
		err = pool.Adopt(ctx, w.config, pool.Options{}, pool.Adoption{LV: c.LV, Name: c.Name, Mode: pool.Block})
	case "import":
		v, err = pool.Import(ctx, w.config, pool.Options{}, pool.ImportSpec{LV: c.LV, Name: c.Name, Probe: func(context.Context, string) (pool.Mode, string, error) {
			return pool.Block, "", nil
		}})
	case "activate":
		r.Path, err = p.Activate(ctx, c.LV)
	case "deactivate":
		err = p.Deactivate(ctx, c.LV)
	case "delete":
		err = p.DeleteVolume(ctx, c.LV)
	case "drop":
		err = w.pool.DeleteSnapshot(ctx, c.LV)
	default:
		return fmt.Errorf("unknown operation %q", c.Op)
	}
	r.LV, r.Size = v.LV, v.Size
	return err
}

// client is the test's end of a worker process.
type client struct {
	*rpc.Client
	cmd    *exec.Cmd
	ended  chan struct{}
	output *tail
}

// tail keeps the last part of a process's output.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const tailBytes = 32 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.buf.Len() > 2*tailBytes {
		t.buf.Next(t.buf.Len() - tailBytes)
	}
	return t.buf.Write(p)
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}

func startWorker() (*client, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "worker"), os.NewFile(uintptr(fds[1]), "caller")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	c := &client{ended: make(chan struct{}), output: &tail{}}
	c.cmd = exec.Command("/proc/self/exe")
	c.cmd.Env = append(os.Environ(), workerVar+"=1")
	c.cmd.Stdout, c.cmd.Stderr, c.cmd.ExtraFiles = c.output, c.output, []*os.File{theirs}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	c.Client = rpc.NewClient(conn)
	go func() {
		_ = c.cmd.Wait() // the calls show how it ended
		close(c.ended)
	}()
	return c, nil
}

// errCut is returned when the worker killed itself at its point.
var errCut = errors.New("cut")

// call calls a method of the worker.
//
// Errors: errCut if the worker died at its point, a hangError if it does not
// answer within the limit.
func (c *client) call(method string, arg, reply any, limit time.Duration) error {
	select {
	case done := <-c.Go("W."+method, arg, reply, make(chan *rpc.Call, 1)).Done:
		var answered rpc.ServerError
		if done.Error == nil || errors.As(done.Error, &answered) {
			return done.Error
		}
		select {
		case <-c.ended:
		case <-time.After(deathLimit):
			return &hangError{"the killed process did not end"}
		}
		if bytes.Contains([]byte(c.output.String()), []byte("cut ")) {
			return errCut
		}
		return fmt.Errorf("the worker died without reaching its point: %w", done.Error)
	case <-time.After(limit):
		return &hangError{fmt.Sprintf("%s %+v did not end", method, arg)}
	}
}

// hangError is returned when a call, a read or a write does not end.
type hangError struct{ what string }

func (e *hangError) Error() string { return "hang: " + e.what }

// kill kills the worker. If goroutines is set, the worker prints its goroutines
// first.
func (c *client) kill(goroutines bool) {
	if goroutines && c.cmd.Process.Signal(syscall.SIGQUIT) == nil {
		select {
		case <-c.ended:
		case <-time.After(3 * time.Second):
		}
	}
	_ = c.cmd.Process.Kill()
	c.Client.Close()
	select {
	case <-c.ended:
	case <-time.After(deathLimit):
	}
}
