package pool

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
)

// errPanic is the error of a panic: a bug, or a state of the machine that the driver
// does not expect.
var errPanic = errors.New("internal error in the driver; see the stack trace in its log")

// guard calls f and returns a panic in f as an error. The driver survives, because
// after a crash and a restart it would meet the same state again, and every volume
// would wait.
func guard(log klog.Logger, f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errPanic, r)
			stack := debug.Stack()
			if read, is := r.(*cow.ReadPanic); is {
				stack = read.Stack
			}
			log.Error(err, "Panic", "stack", string(stack))
		}
	}()
	return f()
}

// loopPause is how long a background loop waits after a panic.
const loopPause = time.Second

// background runs f in the background until the pool is closed, and reports whether
// the pool is still open. A panic ends only f.
func (g *group) background(f func(context.Context)) bool {
	if !g.begin() {
		return false
	}
	go func() {
		defer g.work.Done()
		g.guarded(f)
	}()
	return true
}

// guarded calls f and reports whether f returned without a panic.
func (g *group) guarded(f func(context.Context)) bool {
	return guard(g.log, func() error { f(g.ctx); return nil }) == nil
}

// forever runs a loop in the background until the pool is closed. After a panic it
// starts the loop again.
func (g *group) forever(loop func(context.Context)) {
	g.background(func(ctx context.Context) {
		for !g.guarded(loop) {
			select {
			case <-time.After(loopPause):
			case <-ctx.Done():
				return
			}
		}
	})
}
