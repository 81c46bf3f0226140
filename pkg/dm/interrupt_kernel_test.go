//go:build kernel

package dm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// stacked creates t-below on a scratch disk and t-top on t-below, and returns the
// path of t-top. While t-below is suspended, I/O to t-top stays in flight.
func stacked(t *testing.T, c *Client) string {
	t.Helper()
	below := mapped(t, c, "t-below", slice(disk(t, 0), 64, 64))
	top := mapped(t, c, "t-top", fmt.Sprintf("0 131072 linear %v 0", below))
	return node(t, c, "t-top", top)
}

// inFlight suspends t-below and starts a write to t-top, which ends when t-below is
// resumed.
func inFlight(t *testing.T, c *Client, path string) (written chan error) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT, 0)
	must(t, err)
	b := aligned(t)
	must(t, c.Suspend(t.Context(), "t-below", SuspendOptions{}))
	written = make(chan error, 1)
	go func() {
		_, err := unix.Pwrite(fd, b, 0)
		written <- errors.Join(err, unix.Close(fd))
	}()
	select {
	case err := <-written:
		t.Fatalf("the write did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	return written
}

// suspendFor suspends t-top for at most limit and returns how long it took.
func suspendFor(t *testing.T, c *Client, o SuspendOptions, limit time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	begin := time.Now()
	err := c.Suspend(ctx, "t-top", o)
	return time.Since(begin), err
}

func checkRunning(t *testing.T, c *Client) Info {
	t.Helper()
	info, err := c.Info("t-top")
	must(t, err)
	if info.Suspended {
		t.Error("the device is still suspended")
	}
	return info
}

// mounted makes an ext4 file system on the device at path and mounts it.
func mounted(t *testing.T, path string) (dir string) {
	t.Helper()
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v\n%s", err, out)
	}
	dir = t.TempDir()
	must(t, unix.Mount(path, dir, "ext4", 0, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// needsRecovery reads ext4's flag needs_recovery from the superblock on the disk.
// The flag is clear only if the file system is clean or frozen.
func needsRecovery(t *testing.T, path string) bool {
	t.Helper()
	const superblock, incompat, recover = 1024, 0x60, 0x4
	b := aligned(t)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT, 0)
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.Pread(fd, b, 0)
	must(t, err)
	return binary.LittleEndian.Uint32(b[superblock+incompat:])&recover != 0
}

// TestSuspend_interrupted: the end of the context interrupts a suspend that
// waits for I/O, and the device keeps running with its loaded table.
func TestSuspend_interrupted(t *testing.T) {
	c := open(t)
	path := stacked(t, c)
	written := inFlight(t, c, path)
	must(t, c.Load("t-top", parse(t, "0 131072 zero"), false))
	for _, o := range []SuspendOptions{{}, {SkipLockFS: true}, {SkipLockFS: true, NoFlush: true}} {
		took, err := suspendFor(t, c, o, 200*time.Millisecond)
		if !errors.Is(err, context.DeadlineExceeded) || took > 5*time.Second {
			t.Errorf("%+v: suspend of a device with I/O in flight returned after %v: %v", o, took, err)
		}
		if info := checkRunning(t, c); !info.Loaded {
			t.Errorf("%+v: the loaded table is gone", o)
		}
	}
	must(t, c.Resume("t-below", 0))
	must(t, <-written)
	_, err := suspendFor(t, c, SuspendOptions{}, 20*time.Second)
	must(t, err)
	if info, err := c.Info("t-top"); err != nil || !info.Suspended {
		t.Errorf("suspended device is %+v, %v", info, err)
	}

	ended, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the cause")
	cancel(cause)
	must(t, c.Resume("t-top", 0))
	if err := c.Suspend(ended, "t-top", SuspendOptions{}); !errors.Is(err, cause) {
		t.Errorf("suspend with a context that has ended: %v", err)
	}
	checkRunning(t, c)
}

// TestSuspend_tooLate: the freeze of a file system ends only after the context;
// the device then runs with its old table.
func TestSuspend_tooLate(t *testing.T) {
	c := open(t)
	path := stacked(t, c)
	dir := mounted(t, path)
	old, err := c.Table("t-top")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "dirty"), make([]byte, size.MiB), 0o600))
	must(t, c.Suspend(t.Context(), "t-below", SuspendOptions{}))
	must(t, c.Load("t-top", parse(t, "0 131072 error"), false))
	const stuck = time.Second
	time.AfterFunc(stuck, func() {
		if err := c.Resume("t-below", 0); err != nil {
			t.Error(err)
		}
	})
	took, err := suspendFor(t, c, SuspendOptions{}, 200*time.Millisecond)
	if !errors.Is(err, context.DeadlineExceeded) || took < stuck/2 {
		t.Errorf("suspend returned after %v: %v", took, err)
	}
	if info := checkRunning(t, c); info.Loaded {
		t.Error("the loaded table is still there")
	}
	checkTable(t, c, "t-top", old.String())
	must(t, os.WriteFile(filepath.Join(dir, "after"), []byte("x"), 0o600))
}

// TestResume_underSignals: the signals of the Go runtime do not interrupt a
// resume that suspends the device itself, see blockSignals.
func TestResume_underSignals(t *testing.T) {
	c := open(t)
	path := stacked(t, c)
	written := inFlight(t, c, path)
	must(t, c.Load("t-top", parse(t, "0 131072 zero"), false))
	resumed := make(chan error, 1)
	go func() { resumed <- c.Resume("t-top", 0) }()
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
		signalThreads(t)
	}
	select {
	case err := <-resumed:
		t.Errorf("resume did not wait for the I/O in flight: %v", err)
		resumed <- nil
	default:
	}
	must(t, c.Resume("t-below", 0))
	must(t, <-written)
	must(t, <-resumed)
	checkTable(t, c, "t-top", "0 131072 zero")
}

// signalThreads sends all threads the signal that the Go runtime uses to preempt
// them.
func signalThreads(t *testing.T) {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	must(t, err)
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		must(t, err)
		_ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
	}
}
