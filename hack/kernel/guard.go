package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// A guard is a process between the runner and the kernel. When the kernel ends,
// or the runner does, even by SIGKILL, the guard ends the kernel with all its
// processes and removes the run's directory: nothing outlives a run.
//
// The runner holds one end of a pipe, the leash, and the guard reads the other
// end. A byte is a nudge. When the pipe is closed, the guard kills the process.
type guard struct {
	*exec.Cmd
	leash *os.File
}

// newGuard returns the guard that will run argv. The files in pass become the
// descriptors 3 and up of argv's process. The files in hold stay open in the
// guard until that process has ended.
func newGuard(dir *runDir, argv []string, pass, hold []*os.File) (*guard, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	end, leash, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	args := append([]string{"guard", dir.path, strconv.Itoa(len(pass)), strconv.Itoa(len(hold))}, argv...)
	cmd := exec.Command(self, args...)
	cmd.ExtraFiles = append(append([]*os.File{end}, pass...), hold...)
	// A session of its own keeps the terminal's signals away: the runner
	// handles them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return &guard{cmd, leash}, nil
}

// Start starts the guard, which starts the process.
func (g *guard) Start() error {
	defer func() {
		for _, f := range g.ExtraFiles {
			f.Close()
		}
	}()
	return g.Cmd.Start()
}

// end kills the process, as a power cut would. The guard exits once everything
// has ended.
func (g *guard) end() { g.leash.Close() }

// nudge has the guard send the process a timer's signal, SIGALRM.
func (g *guard) nudge() { _, _ = g.leash.Write([]byte{0}) }

// guardMain is the main function of the guard's process; args come from
// newGuard. It returns the exit code of the process that it runs.
func guardMain(args []string) (int, error) {
	dir := args[0]
	defer os.RemoveAll(dir)
	passed, err := strconv.Atoi(args[1])
	if err != nil {
		return exitFailed, err
	}
	held, err := strconv.Atoi(args[2])
	if err != nil {
		return exitFailed, err
	}
	const first = 3
	for fd := first; fd <= first+passed+held; fd++ {
		unix.CloseOnExec(fd)
	}
	leash := os.NewFile(first, "leash")
	cmd := exec.Command(args[3], args[4:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	for i := range passed {
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(first+1+i), "passed"))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// Pdeathsig depends on the thread, so the thread must not end. The helper
	// processes of User-mode Linux become children of the guard when the main
	// process has died.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return exitFailed, err
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	quit := make(chan os.Signal, 1)
	signal.Notify(quit, syscall.SIGQUIT)
	if err := cmd.Start(); err != nil {
		return exitFailed, err
	}
	group := -cmd.Process.Pid
	var cut atomic.Bool
	go func() {
		for buf := make([]byte, 1); ; {
			if _, err := leash.Read(buf); err != nil {
				break
			}
			_ = cmd.Process.Signal(unix.SIGALRM)
		}
		cut.Store(true)
		_ = unix.Kill(group, unix.SIGKILL)
	}()
	go func() {
		for range quit {
			_ = unix.Kill(cmd.Process.Pid, unix.SIGQUIT)
		}
	}()
	err = cmd.Wait()
	_ = unix.Kill(group, unix.SIGKILL)
	for {
		_, e := unix.Wait4(group, nil, 0, nil)
		if errors.Is(e, unix.ECHILD) {
			break
		}
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status := exit.Sys().(syscall.WaitStatus)
		if status.Signaled() && !cut.Load() {
			return 128 + int(status.Signal()), fmt.Errorf("the process was killed by a signal: %v", status.Signal())
		}
		return status.ExitStatus(), nil
	}
	if err != nil {
		return exitFailed, err
	}
	return 0, nil
}
