package lvm2

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// LockMode is the mode of a lock.
type LockMode int

// Shared locks are for readers. Exclusive locks are for changes of metadata or
// devices.
const (
	Shared    LockMode = unix.LOCK_SH
	Exclusive LockMode = unix.LOCK_EX
)

// Parts of the names of lvm2's lock files.
const (
	vgLockPrefix = "V_"
	globalLock   = "P_global"
	auxSuffix    = ":aux"
)

// Lock is a lock of lvm2: the lvm2 tools respect the locks of this package, and this
// package respects theirs. Two locks also exclude each other within a process.
//
// A Lock has a bare file descriptor. For an os.File, the runtime's poller would need
// five more system calls for each lock, without any use.
type Lock struct {
	path string
	fd   int
	mode LockMode
}

// LockVG locks a volume group by its name. It waits until it has the lock or ctx
// ends. A result of Read from before the lock may be out of date.
//
// Errors: ErrInvalid (the name); the cause of ctx's end.
func (h Host) LockVG(ctx context.Context, name string, mode LockMode) (*Lock, error) {
	if err := CheckVGName(name); err != nil {
		return nil, err
	}
	return h.lock(ctx, vgLockPrefix+name, mode)
}

// LockGlobal takes lvm2's lock on the set of volume groups and physical volumes. A
// caller that needs both locks must take it before the lock of a volume group.
//
// Errors: the cause of ctx's end.
func (h Host) LockGlobal(ctx context.Context, mode LockMode) (*Lock, error) {
	return h.lock(ctx, globalLock, mode)
}

// lock follows lib/locking/lvm-flock.c: every caller first takes an auxiliary lock. A
// writer keeps the auxiliary lock while it waits for the lock itself, so new readers
// queue after the writer.
func (h Host) lock(ctx context.Context, name string, mode LockMode) (*Lock, error) {
	path := filepath.Join(h.lockDir(), name)
	aux, err := acquire(ctx, path+auxSuffix, Exclusive)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(h.lockDir(), 0o700); err != nil {
			return nil, fmt.Errorf("create lvm2's lock directory: %w", err)
		}
		aux, err = acquire(ctx, path+auxSuffix, Exclusive)
	}
	if err != nil {
		return nil, err
	}
	if mode == Shared {
		aux.release()
		return acquire(ctx, path, mode)
	}
	l, err := acquire(ctx, path, mode)
	aux.release()
	return l, err
}

// Intervals between attempts to take a lock. A Commit takes milliseconds, and a
// command of lvm2 takes tenths of a second.
const (
	firstWait = 200 * time.Microsecond
	lastWait  = 20 * time.Millisecond
)

// acquire takes a flock on the file at path. It polls, because a Go program cannot
// interrupt a blocking flock when ctx ends.
func acquire(ctx context.Context, path string, mode LockMode) (*Lock, error) {
	for wait := firstWait; ; wait = min(2*wait, lastWait) {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("wait for lvm2's lock %s: %w", path, context.Cause(ctx))
		}
		l, err := try(path, mode)
		if l != nil {
			return l, nil
		}
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// try returns nil if another lock excludes this lock.
func try(path string, mode LockMode) (*Lock, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC, 0o777)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		l := &Lock{path, fd, mode}
		err = unix.Flock(fd, int(mode)|unix.LOCK_NB)
		if err == nil && l.current() {
			return l, nil
		}
		unix.Close(fd)
		switch {
		case errors.Is(err, unix.EWOULDBLOCK):
			return nil, nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return nil, err
		}
		// The previous owner of the lock has unlinked the file: lock the new file.
	}
}

// current reports whether the locked file is still the one at the path.
func (l *Lock) current() bool {
	var mine, there unix.Stat_t
	err1, err2 := unix.Fstat(l.fd, &mine), unix.Stat(l.path, &there)
	return err1 == nil && err2 == nil && mine.Dev == there.Dev && mine.Ino == there.Ino
}

// release releases the lock, and removes the file if no other lock holds it.
func (l *Lock) release() error {
	if l.mode == Exclusive || unix.Flock(l.fd, unix.LOCK_EX|unix.LOCK_NB) == nil && l.current() {
		_ = unix.Unlink(l.path) // safe only with an exclusive lock on the current file
	}
	return os.NewSyscallError("close", unix.Close(l.fd))
}

// Unlock releases the lock.
func (l *Lock) Unlock() error {
	if l.mode == Exclusive {
		return l.release()
	}
	// Drop the shared lock before release tries the exclusive lock: otherwise two
	// readers that leave at the same time would both keep the file.
	err := unix.Flock(l.fd, unix.LOCK_UN)
	return errors.Join(err, l.release())
}
