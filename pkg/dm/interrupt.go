package dm

import (
	"context"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/point"
)

// ioctl performs one ioctl on the control device.
//
// Errors: an errno; the cause of ctx's end if that interrupted the ioctl.
func (k control) ioctl(ctx context.Context, op operation, b []byte) error {
	// _IOWR(0xfd, nr, struct dm_ioctl)
	cmd := uintptr(3<<30 | headerLen<<16 | 0xfd<<8 | op.nr)
	var errno unix.Errno
	if point.On && op.changes() {
		device := requested(b)
		point.Before(op.name, device)
		defer point.After(op.name, device)
	}
	closed := k.conn.Control(func(fd uintptr) {
		switch {
		case ctx.Done() != nil:
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			defer interruptAtEnd(ctx, b)()
		case op.whole:
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			defer blockSignals()()
		}
		for {
			_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, cmd, uintptr(unsafe.Pointer(&b[0])))
			if errno != unix.EINTR || ctx.Err() != nil {
				return
			}
		}
	})
	switch {
	case closed != nil:
		return closed
	case ctx.Err() != nil && (errno == unix.EINTR || errno == unix.ENXIO):
		return context.Cause(ctx)
	case errno != 0:
		return errno
	}
	return nil
}

// blockSignals blocks all signals for the calling thread until restore is
// called. The Go runtime sends signals to its threads at any time. If a signal
// interrupts a resume that suspends the device for the swap, kernels up to 6.10
// (except late stable releases) drop the new table.
func blockSignals() (restore func()) {
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, &old); err != nil {
		return func() {}
	}
	return func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil) }
}

// interruptAtEnd interrupts the next ioctl of the calling thread when ctx ends.
// b is the ioctl's request and must choose the device by name. The caller must
// call stop after the ioctl, on the same thread.
//
// It sends the thread SIGURG, which the Go runtime handles and otherwise
// ignores. It repeats the signal, because a signal just before the ioctl is lost.
// Some kernels then return EINTR. Others restart the ioctl, because the runtime
// installs its handlers with SA_RESTART: the kernel reads the request again, finds
// the name blank, and returns ENXIO.
func interruptAtEnd(ctx context.Context, b []byte) (stop func()) {
	pid, tid := os.Getpid(), unix.Gettid()
	returned, finished := make(chan struct{}), make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(finished)
		b[offName] = 0
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			_ = unix.Tgkill(pid, tid, unix.SIGURG)
			select {
			case <-returned:
				return
			case <-tick.C:
			}
		}
	})
	return func() {
		if !cancel() {
			close(returned)
			<-finished
		}
	}
}
