package pool

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"k8s.io/klog/v2"
)

// keyed serialises operations on one thing: a volume and its history, or a name.
type keyed struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// lock waits for key until ctx ends. The returned function releases it.
func (k *keyed) lock(ctx context.Context, key string) (release func(), err error) {
	for {
		k.mu.Lock()
		busy, taken := k.held[key]
		if !taken {
			free := make(chan struct{})
			k.held[key] = free
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, key)
				k.mu.Unlock()
				close(free)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, fmt.Errorf("another operation on %s is running: %w", key, context.Cause(ctx))
		}
	}
}

// run executes f while holding keys, which are taken in the given order: names
// before logical volumes. The caller waits as long as ctx lives. Once f has
// begun it goes on without the caller, because what it did is on the disk.
func run[T any](ctx context.Context, p *Pool, keys []string, f func(context.Context) (T, error)) (T, error) {
	var none T
	var releases []func()
	release := func() {
		for _, r := range slices.Backward(releases) {
			r()
		}
	}
	for _, k := range keys {
		r, err := p.keys.lock(ctx, k)
		if err != nil {
			release()
			return none, err
		}
		releases = append(releases, r)
	}
	if !p.begin() {
		release()
		return none, fmt.Errorf("pool %s is closed: %w", p.name, ErrUnavailable)
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	own := klog.NewContext(p.ctx, klog.FromContext(ctx))
	go func() {
		defer p.work.Done()
		v, err := f(own)
		release()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, fmt.Errorf("the operation on %v goes on in the background: %w", keys, context.Cause(ctx))
	}
}

// Keys under which operations exclude each other.
func nameKey(csi string) string { return fmt.Sprintf("name %q", csi) }
func lvKey(lv string) string    { return "logical volume " + lv }
