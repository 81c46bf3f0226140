package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/hack/kernel/wire"
)

// session is one guest kernel, which runs as a process of the host.
type session struct {
	opts  options
	guard *guard
	log   *kernelLog
	line  io.ReadWriteCloser // the serial line to the guest's first process
	ready chan struct{}
	nudge bool // the kernel loses timers, see nudgePause
}

// nudgePause is the time between two additional timer signals that a User-mode
// Linux gets. The kernel arms its host timer for one event at a time. It drops
// the signal if the signal comes while it handles the one before, as may happen
// on a busy machine. Without another signal nothing in the guest would ever
// time out again.
const nudgePause = time.Second

// run relays between the command and the standard streams until the command
// ends, the guest dies, the time is over or a signal comes. It then kills the
// guest and returns the exit code.
func (s *session) run() (int, error) {
	if err := s.guard.Start(); err != nil {
		return exitFailed, fmt.Errorf("starting the kernel: %w", err)
	}
	s.ready = make(chan struct{})
	died := make(chan error, 1)
	go func() { died <- s.guard.Wait() }()
	exit := make(chan int, 1)
	go s.receive(exit)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	send := wire.NewWriter(s.line)
	go s.passStdin(send)
	if s.nudge {
		go s.keepTime()
	}
	var timeout <-chan time.Time
	if s.opts.timeout > 0 {
		timeout = time.After(s.opts.timeout)
	}
	for {
		select {
		case code := <-exit:
			// The guest has written everything to its disks and needs no shutdown.
			s.kill(died)
			return code, nil
		case err := <-died:
			// The guest's last frames may still be in transit.
			select {
			case code := <-exit:
				return code, nil
			case <-time.After(200 * time.Millisecond):
			}
			s.log.show(os.Stderr)
			if err == nil {
				err = errors.New("the guest powered off")
			}
			return exitFailed, fmt.Errorf("the kernel ended before the command did: %w", err)
		case <-timeout:
			s.askBlocked(send)
			s.kill(died)
			s.log.show(os.Stderr)
			return exitTimeout, fmt.Errorf("killed after the time limit of %v", s.opts.timeout)
		case sig := <-signals:
			n := sig.(syscall.Signal)
			if n == syscall.SIGQUIT {
				go s.passSignal(send, n)
				continue
			}
			s.kill(died)
			return 128 + int(n), fmt.Errorf("killed, because the runner received a signal: %v", sig)
		}
	}
}

// keepTime nudges the kernel for as long as the command runs.
func (s *session) keepTime() {
	<-s.ready // a signal during the boot would kill the kernel
	for range time.Tick(nudgePause) {
		s.guard.nudge()
	}
}

func (s *session) kill(died <-chan error) {
	s.guard.end()
	<-died
}

// receive writes to the standard streams and the log what the guest sends.
func (s *session) receive(exit chan<- int) {
	frames := wire.NewReader(s.line)
	var once sync.Once
	for {
		t, payload, err := frames.Read()
		if err != nil {
			fmt.Fprintf(s.log, "testkernel: %v\n", err)
			return
		}
		switch t {
		case wire.Ready:
			once.Do(func() {
				s.log.booted()
				close(s.ready)
			})
		case wire.Stdout:
			os.Stdout.Write(payload)
		case wire.Stderr:
			os.Stderr.Write(payload)
		case wire.Log:
			fmt.Fprintf(s.log, "testkernel: %s\n", payload)
		case wire.Exit:
			exit <- int(payload[0])
			return
		}
	}
}

func (s *session) passStdin(send *wire.Writer) {
	<-s.ready
	buf := make([]byte, 4096)
	for s.opts.stdin {
		n, err := os.Stdin.Read(buf)
		if n > 0 && send.Write(wire.Stdin, buf[:n]) != nil {
			return
		}
		if err != nil {
			break
		}
	}
	_ = send.Write(wire.Stdin, nil)
}

func (s *session) passSignal(send *wire.Writer, sig syscall.Signal) {
	<-s.ready
	_ = send.Write(wire.Signal, []byte{byte(sig)})
}

// askBlocked has the kernel log the processes that are blocked.
func (s *session) askBlocked(send *wire.Writer) {
	select {
	case <-s.ready:
	default:
		return
	}
	go send.Write(wire.Blocked, nil)
	// The guest does not answer; the log needs a moment to arrive.
	time.Sleep(time.Second)
}

// socketPair returns the two ends of a serial line.
func socketPair() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fds[0]), "serial line")
	defer f.Close()
	ours, err = net.FileConn(f)
	if err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[1]))
	}
	return ours, os.NewFile(uintptr(fds[1]), "guest's serial line"), nil
}
