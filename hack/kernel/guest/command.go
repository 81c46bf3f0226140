package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/hack/kernel/wire"
)

// runCommand runs the command, relays its input and output, and reaps orphans.
// It returns the exit code once the command has ended and its output is sent.
func runCommand(cfg Config, line *serial) (int, error) {
	file, err := lookPath(cfg.Argv[0], cfg.Env)
	if err != nil {
		return 127, err
	}
	var ends [3]struct{ guest, command *os.File }
	for i := range ends {
		r, w, err := os.Pipe()
		if err != nil {
			return 125, err
		}
		ends[i].guest, ends[i].command = r, w
	}
	ends[0].guest, ends[0].command = ends[0].command, ends[0].guest

	if err := line.Write(wire.Ready, nil); err != nil {
		return 125, err
	}
	pid, err := syscall.ForkExec(file, cfg.Argv, &syscall.ProcAttr{
		Dir:   cfg.Dir,
		Env:   cfg.Env,
		Files: []uintptr{ends[0].command.Fd(), ends[1].command.Fd(), ends[2].command.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		code := 126
		if errors.Is(err, syscall.ENOENT) {
			code = 127
		}
		return code, fmt.Errorf("starting %s in %s: %w", file, cfg.Dir, err)
	}
	for _, e := range ends {
		e.command.Close()
	}
	go receive(line, pid, ends[0].guest)
	var output sync.WaitGroup
	output.Go(func() { relay(ends[1].guest, line, wire.Stdout) })
	output.Go(func() { relay(ends[2].guest, line, wire.Stderr) })

	status, err := waitFor(pid)
	if err != nil {
		return 125, err
	}
	// No process that the command left may hold its output open.
	_ = unix.Kill(-1, unix.SIGKILL)
	done := make(chan struct{})
	go func() { output.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Second):
		_ = line.Write(wire.Log, []byte("a process that cannot be killed holds the output open"))
	}
	if status.Signaled() {
		return 128 + int(status.Signal()), fmt.Errorf("the command was killed by a signal: %s", status.Signal())
	}
	return status.ExitStatus(), nil
}

// waitFor reaps every process that ends, until pid has ended.
func waitFor(pid int) (unix.WaitStatus, error) {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("waiting for the command: %w", err)
		}
		if got == pid {
			return status, nil
		}
	}
}

// receive passes on to the command what the runner sends.
func receive(line *serial, pid int, stdin *os.File) {
	frames := wire.NewReader(line.tty)
	for {
		t, payload, err := frames.Read()
		switch {
		case err != nil:
			return
		case t == wire.Stdin && len(payload) == 0:
			stdin.Close()
		case t == wire.Stdin:
			// A command that does not read its input is not an error.
			_, _ = stdin.Write(payload)
		case t == wire.Blocked:
			_ = os.WriteFile("/proc/sysrq-trigger", []byte("w"), 0)
		case t == wire.Signal && len(payload) == 1:
			_ = unix.Kill(pid, unix.Signal(payload[0]))
		}
	}
}

// lookPath finds a command as a shell does, in the PATH of env.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	for _, dir := range filepath.SplitList(path) {
		file := filepath.Join(dir, name)
		if unix.Access(file, unix.X_OK) == nil {
			if st, err := os.Stat(file); err == nil && !st.IsDir() {
				return file, nil
			}
		}
	}
	return "", fmt.Errorf("%s: %w in PATH=%s", name, syscall.ENOENT, path)
}

// relay sends everything that it reads from r until the end.
func relay(r io.Reader, line *serial, t wire.Type) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if line.Write(t, buf[:n]) != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
