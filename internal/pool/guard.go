package pool

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"k8s.io/klog/v2"
)

// errPanic: a mistake in this program, or a state of the machine that it did not think of.
var errPanic = errors.New("the driver stumbled over a state that it did not expect, its log has the place")

// guard calls f. A panic in it ends f with an error, and nothing else: a crash would
// meet the same state again after the restart, and every volume would wait for it.
func guard(log klog.Logger, f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errPanic, r)
			log.Error(err, "Panic", "stack", string(debug.Stack()))
		}
	}()
	return f()
}

// loopPause is how long a background loop rests after a panic.
const loopPause = time.Second

// background runs f in the background until the pool is closed: false if it is.
// A panic ends f alone.
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

// guarded calls f, and says whether it returned without a panic.
func (g *group) guarded(f func(context.Context)) bool {
	return guard(g.log, func() error { f(g.ctx); return nil }) == nil
}

// forever runs a loop in the background until the pool is closed. After a panic,
// which ends one turn of it, the loop goes on.
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
