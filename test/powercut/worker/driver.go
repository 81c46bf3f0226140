package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/audit"
	"github.com/csi-dmsnap/csi-dmsnap/test/powercut/history"
)

const (
	vgName      = "vgcut"
	openLimit   = 30 * time.Second
	callLimit   = 30 * time.Second
	driverFD    = 3
	pendingWait = 5 * time.Millisecond
)

// Driver has the pool, in a process of its own that can be killed. The worker
// calls it through net/rpc.
type Driver struct {
	pool   *pool.Pool
	config pool.Config
}

// Call is an operation for the driver.
type Call struct {
	Op       history.Op
	Name     string // the CSI name of the new volume or snapshot
	LV       string // the logical volume of the volume or snapshot
	Size     size.Bytes
	FS       bool
	ReadOnly bool
	Snapshot string // the LV of the snapshot that a volume is rolled back to

	Transient bool
}

// Reply is the result of a Call.
type Reply struct {
	LV       string
	Size     size.Bytes
	Error    string
	NoSpace  bool
	NotFound bool
}

// pool returns the configuration of the pool.
func (o options) pool() pool.Config {
	c := pool.Config{
		Name: "pool", VolumeGroup: vgName, Devices: strings.Split(o.disks, ","), Create: true, ExtentSize: extent,
		Chunk: size.Bytes(o.chunk), FirstStore: 2 * extent, HydrationShare: 100,
	}
	if !o.check { // slow, so that the power is cut while volumes hydrate
		c.HydrationRate = 16 * size.MiB
	}
	return c
}

func runDriver(o options) error {
	f := os.NewFile(driverFD, "caller")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), openLimit)
	defer cancel()
	p, err := pool.Open(ctx, o.pool(), pool.Options{})
	if err != nil {
		return err
	}
	server := rpc.NewServer()
	if err := server.Register(&Driver{p, o.pool()}); err != nil {
		return err
	}
	server.ServeConn(conn)
	return p.Close()
}

// Ready returns when the pool is open.
func (d *Driver) Ready(struct{}, *struct{}) error { return nil }

// List returns the pool's volumes and snapshots.
func (d *Driver) List(_ struct{}, l *audit.Listing) (err error) {
	if l.Volumes, err = d.pool.Volumes(context.Background()); err != nil {
		return err
	}
	l.Snapshots, err = d.pool.Snapshots(context.Background())
	return err
}

// Do performs an operation, and retries it while the pool reports it as
// pending.
func (d *Driver) Do(c Call, r *Reply) error {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	for {
		err := d.do(ctx, c, r)
		var pending *pool.PendingError
		if errors.As(err, &pending) && ctx.Err() == nil {
			time.Sleep(pendingWait)
			continue
		}
		if err != nil {
			r.Error = err.Error()
			r.NoSpace, r.NotFound = errors.Is(err, pool.ErrNoSpace), errors.Is(err, pool.ErrNotFound)
		}
		return nil
	}
}

func (d *Driver) do(ctx context.Context, c Call, r *Reply) (err error) {
	spec := pool.VolumeSpec{Name: c.Name, Size: c.Size, Mode: pool.Block, ReadOnly: c.ReadOnly, Transient: c.Transient}
	if c.FS {
		spec.Mode, spec.FSType = pool.Filesystem, "ext4"
	}
	var v pool.Volume
	switch c.Op {
	case history.Create:
	case history.Restore:
		spec.Source = pool.Source{Kind: pool.FromSnapshot, LV: c.LV}
	case history.Clone:
		spec.Source = pool.Source{Kind: pool.FromVolume, LV: c.LV}
	case history.Snapshot:
		s, err := d.pool.CreateSnapshot(ctx, c.Name, c.LV)
		r.LV, r.Size = s.LV, s.Size
		return err
	case history.Expand:
		v, err = d.pool.ExpandVolume(ctx, c.LV, c.Size, 0)
		r.Size = v.Size
		return err
	case history.Rollback: // as the command does it, while the pool is open
		rolled, err := pool.Rollback(ctx, d.config, pool.Options{}, pool.RollbackSpec{Volume: c.LV, Snapshot: c.Snapshot})
		r.Size = rolled.Volume.Size
		return err
	case history.Adopt:
		r.Size = c.Size
		return pool.Adopt(ctx, d.config, pool.Options{}, pool.Adoption{LV: c.LV, Mode: pool.Block})
	case history.Import:
		v, err = pool.Import(ctx, d.config, pool.Options{}, pool.ImportSpec{LV: c.LV, Probe: func(context.Context, string) (pool.Mode, string, error) {
			return pool.Block, "", nil
		}})
		r.Size = v.Size
		return err
	case history.Format:
		return d.pool.SetFormatted(ctx, c.LV)
	case history.Activate:
		_, err = d.pool.Activate(ctx, c.LV)
		return err
	case history.Deactivate:
		return d.pool.Deactivate(ctx, c.LV)
	case history.Delete:
		return d.pool.DeleteVolume(ctx, c.LV)
	case history.Drop:
		return d.pool.DeleteSnapshot(ctx, c.LV)
	default:
		return fmt.Errorf("unknown operation %q", c.Op)
	}
	v, err = d.pool.CreateVolume(ctx, spec)
	r.LV, r.Size = v.LV, v.Size
	return err
}

// client is the worker's end of a driver process.
type client struct {
	*rpc.Client
	cmd   *exec.Cmd
	ended chan struct{}
}

// startDriver starts a driver, which begins to open the pool.
func startDriver(o options) (*client, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "driver"), os.NewFile(uintptr(fds[1]), "caller")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", "-driver", "-disks", o.disks, "-chunk", fmt.Sprint(o.chunk), fmt.Sprintf("-check=%t", o.check))
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stderr, os.Stderr, []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &client{rpc.NewClient(conn), cmd, make(chan struct{})}
	go func() {
		_ = cmd.Wait() // the calls show how it ended
		close(c.ended)
	}()
	return c, nil
}

// kill kills the driver, as a crash would.
func (c *client) kill() error {
	_ = c.cmd.Process.Kill() // it may have ended
	defer c.Close()
	select {
	case <-c.ended:
		return nil
	case <-time.After(20 * time.Second):
		return errors.New("the killed driver did not end: it waits in the kernel")
	}
}

// ready waits until the pool is open.
func (c *client) ready() error {
	call := c.Go("Driver.Ready", struct{}{}, &struct{}{}, nil)
	select {
	case <-call.Done:
		return call.Error
	case <-time.After(openLimit + 5*time.Second):
		return errors.New("the pool did not open in time")
	}
}

func (c *client) do(call Call) (Reply, error) {
	r := &Reply{}
	select {
	case done := <-c.Go("Driver.Do", call, r, make(chan *rpc.Call, 1)).Done:
		return *r, done.Error
	case <-time.After(callLimit + 10*time.Second):
		hung("%s of %s did not end", call.Op, call.LV)
		return *r, nil
	}
}

func (c *client) list() (l audit.Listing, err error) {
	err = c.Call("Driver.List", struct{}{}, &l)
	return l, err
}
