package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/build"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/machine"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/process"
)

// Options are the user's choices.
type Options struct {
	Root   string // of the repository
	Dir    string // the directory for the cluster's files
	Nodes  int
	Memory string // of each node
	Tests  bool   // also build Kubernetes' own tests
}

// Up starts a cluster and returns once its nodes are ready and it can make
// snapshots.
func Up(ctx context.Context, o Options, log io.Writer) (*Client, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces and devices need root")
	}
	if running(o.Dir) {
		return nil, fmt.Errorf("a cluster is already running in %s; stop it by make cluster-down", o.Dir)
	}
	set, err := build.Programs(ctx, filepath.Join(o.Root, "test", "e2e"), o.Tests, log)
	if err != nil {
		return nil, err
	}
	runner, err := machine.Runner(ctx, o.Root)
	if err != nil {
		return nil, err
	}
	if err := os.RemoveAll(o.Dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	c := &Config{Dir: o.Dir, Programs: set.Dir, Runner: runner, Nodes: o.Nodes, Memory: o.Memory}
	// A node that boots again needs the same program as before.
	if c.Self, err = keepSelf(c.file("e2e")); err != nil {
		return nil, err
	}
	if c.Golden, err = golden(ctx, set, runner, c.Self, log); err != nil {
		return nil, err
	}
	if err := c.launch(ctx); err != nil {
		return nil, err
	}
	client, err := Connect(c.Dir)
	if err == nil {
		err = client.furnish(ctx, set, log)
	}
	if err != nil {
		return nil, errors.Join(err, Down(context.WithoutCancel(ctx), c.Dir))
	}
	return client, nil
}

func keepSelf(file string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(self)
	if err != nil {
		return "", err
	}
	return file, os.WriteFile(file, data, 0o755)
}

// launch starts the daemon and waits until it accepts commands.
func (c *Config) launch(ctx context.Context) error {
	door, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer door.Close()
	c.Address = door.Addr().String()
	if err := c.save(); err != nil {
		return err
	}
	doorFile, err := door.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	defer doorFile.Close()
	log, err := os.Create(c.file(daemonLogFile))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(c.Self, "daemon", c.Dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{doorFile} // becomes doorFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the cluster's daemon: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	start, err := process.StartTime(cmd.Process.Pid)
	if err == nil {
		err = writeJSON(c.file(daemonFile), daemonRecord{cmd.Process.Pid, start})
	}
	for err == nil {
		if conn, dialErr := net.Dial("unix", c.file(socketFile)); dialErr == nil {
			return conn.Close()
		}
		select {
		case err = <-ended:
			text, _ := os.ReadFile(c.file(daemonLogFile))
			return fmt.Errorf("the cluster's daemon has ended (%v): %s", err, text) //nolint:errorlint // err may be nil
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	<-ended
	return err
}

// running reports whether the cluster in the directory has a daemon.
func running(dir string) bool {
	var d daemonRecord
	return readJSON(filepath.Join(dir, daemonFile), &d) == nil && d.alive()
}

// Down stops the cluster in the directory and deletes its disks. The logs stay.
// Without a cluster it does nothing.
func Down(ctx context.Context, dir string) error {
	var d daemonRecord
	err := readJSON(filepath.Join(dir, daemonFile), &d)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if d.alive() {
		if err := syscall.Kill(d.Pid, syscall.SIGTERM); err != nil {
			return fmt.Errorf("stopping the cluster's daemon: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	for d.alive() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the cluster's daemon, process %d, did not end: %w", d.Pid, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
	for _, pattern := range []string{"*.img", socketFile, daemonFile, configFile, "e2e", "kubeconfig", "controlplane/etcd"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, f := range files {
			if err := os.RemoveAll(f); err != nil {
				return err
			}
		}
	}
	return nil
}
