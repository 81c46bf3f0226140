// Package process starts the programs of the cluster. No program outlives the
// process that started it.
package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is a running program.
type Process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // the result of Wait, valid once done is closed
}

// Spec describes a program to start.
type Spec struct {
	Argv []string
	Env  []string // added to this process's own
	Log  string   // file that its output is appended to
}

// starting runs functions on a thread that never ends. The kernel kills a child
// when the thread that started it ends, and threads of Go may end.
var starting = sync.OnceValue(func() chan func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// Start starts a program. The kernel kills the program when this process ends.
func Start(name string, spec Spec) (*Process, error) {
	log, err := os.OpenFile(spec.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(spec.Argv[0], spec.Argv[1:]...)
	cmd.Env = append(os.Environ(), spec.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	// A session of its own keeps the terminal's signals away.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	starting() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p := &Process{name: name, log: spec.Log, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Pid returns the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns how the process ended, always as an error. It is valid only once
// Done is closed.
func (p *Process) Err() error {
	err := p.err
	if err == nil {
		err = errors.New("exit status 0")
	}
	return fmt.Errorf("%s has ended: %w; its log is %s", p.name, err, p.log)
}

// Signal sends a signal.
func (p *Process) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// End asks the process to end, and kills it after the grace period.
func (p *Process) End(grace time.Duration) {
	_ = p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return
	case <-time.After(grace):
	}
	_ = p.Signal(syscall.SIGKILL)
	<-p.done
}

// Poll calls ready repeatedly until ready returns nil. If the context or the
// process ends before that, Poll returns an error, with ready's last error if
// there is one.
func (p *Process) Poll(ctx context.Context, ready func(context.Context) error) error {
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return p.Err()
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w (%w); its log is %s", p.name, err, ctx.Err(), p.log)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// StartTime returns the start time of a process. It serves only to distinguish
// the process from another process with the same id (proc_pid_stat(5), field
// 22).
func StartTime(pid int) (string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The second field, a name in parentheses, may have any characters.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	const startTime = 22 - 3
	if len(fields) <= startTime {
		return "", fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	if fields[0] == "Z" {
		return "", fmt.Errorf("process %d has ended", pid)
	}
	return fields[startTime], nil
}

// Success reports whether the process exited with status 0. It is valid only
// once Done is closed.
func (p *Process) Success() bool { return p.err == nil }
