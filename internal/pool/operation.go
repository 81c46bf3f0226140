package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// keyed is a set of locks by key. A key serialises operations on a volume and its
// history, or on a name. Waiters get their turn in order, so work that releases a key
// and immediately takes the key again lets waiting operations run in between.
type keyed struct {
	mu   sync.Mutex
	held map[string][]chan struct{} // keys that are held, each with the turns of its waiters
}

// lock waits for key until ctx ends. The returned function releases it.
func (k *keyed) lock(ctx context.Context, key string) (release func(), err error) {
	release = func() { k.pass(key) }
	k.mu.Lock()
	waiting, taken := k.held[key]
	if !taken {
		k.held[key] = nil
		k.mu.Unlock()
		return release, nil
	}
	turn := make(chan struct{})
	k.held[key] = append(waiting, turn)
	k.mu.Unlock()
	select {
	case <-turn:
		return release, nil
	case <-ctx.Done():
	}
	k.mu.Lock()
	i := slices.Index(k.held[key], turn)
	if i >= 0 {
		k.held[key] = slices.Delete(k.held[key], i, i+1)
	}
	k.mu.Unlock()
	if i < 0 { // the turn came just before ctx ended
		release()
	}
	return nil, fmt.Errorf("another operation on %s is running: %w", key, context.Cause(ctx))
}

// pass gives key to the longest waiter.
func (k *keyed) pass(key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	waiting := k.held[key]
	if len(waiting) == 0 {
		delete(k.held, key)
		return
	}
	k.held[key] = waiting[1:]
	close(waiting[0])
}

// run executes f while holding keys. It takes the keys in the given order: names
// before logical volumes. The caller waits until ctx ends. Once f has begun, f
// continues without the caller, because its first steps may already be on the disk.
func run[T any](ctx context.Context, g *group, keys []string, f func(context.Context) (T, error)) (T, error) {
	var none T
	var releases []func()
	release := func() {
		for _, r := range slices.Backward(releases) {
			r()
		}
	}
	for _, k := range keys {
		r, err := g.lock(ctx, k)
		if err != nil {
			release()
			return none, err
		}
		releases = append(releases, r)
	}
	if !g.begin() {
		release()
		return none, fmt.Errorf("pool %s is closed: %w", g.name, ErrUnavailable)
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 2)
	own := klog.NewContext(g.ctx, klog.FromContext(ctx))
	go func() {
		defer g.work.Done()
		var r result
		r.err = guard(klog.FromContext(own), func() (err error) { r.value, err = f(own); return err })
		var stuck *stuckFreeze
		if errors.As(r.err, &stuck) { // no other operation may use the volume until the freeze returns
			for i, k := range keys {
				if !strings.HasPrefix(k, lvKeyPrefix) {
					releases[i]()
					releases[i] = func() {}
				}
			}
			done <- r
			<-stuck.until
		}
		release()
		done <- r
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, fmt.Errorf("the operation on %v continues in the background: %w", keys, context.Cause(ctx))
	}
}

// onVolume runs f like run does, while holding the key of the logical volume lv and of
// the root of its family.
func (p *Pool) onVolume(ctx context.Context, lv string, f func(context.Context) error) error {
	_, err := run(ctx, &p.group, []string{lvKey(lv)}, func(ctx context.Context) (none struct{}, err error) { return none, f(ctx) })
	return err
}

// nameKey and lvKey return the keys by which operations exclude each other.
func nameKey(csi string) string { return fmt.Sprintf("name %q", csi) }
func lvKey(lv string) string    { return lvKeyPrefix + lv }

// flatKey returns the key for making the flat store of a layer. It is taken before lvKey.
func flatKey(layer lvm2.ID) string { return "flat store of " + string(layer) }

// roomKey is the key of the only cut that may wait for room. It is taken before all
// other keys.
const roomKey = "room"

// storeKey returns the key for changing the device of a layer's store. It may be taken
// with or without lvKey.
func storeKey(id lvm2.ID) string { return "store " + string(id) }

const lvKeyPrefix = "logical volume "

// lock takes a key. Volumes that read through each other share devices, so for a
// logical volume lock first takes the key of the root of its family. It then takes the
// volume's own key, because the change that makes a fork independent still runs for a
// while after the change is on the disk.
func (g *group) lock(ctx context.Context, key string) (release func(), err error) {
	lv, is := strings.CutPrefix(key, lvKeyPrefix)
	if !is {
		return g.keys.lock(ctx, key)
	}
	for {
		root := g.current.Load().Root(lv)
		release, err := g.keys.lock(ctx, lvKey(root))
		if err != nil {
			return nil, err
		}
		if g.current.Load().Root(lv) != root {
			release()
			continue
		}
		if root == lv {
			return release, nil
		}
		own, err := g.keys.lock(ctx, lvKey(lv))
		if err != nil {
			release()
			return nil, err
		}
		return func() { own(); release() }, nil
	}
}
