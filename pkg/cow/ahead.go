package cow

import (
	"context"
	"fmt"
	"iter"
	"runtime/debug"
	"sync"

	"k8s.io/klog/v2"
)

// Most layers are short: to read one takes a request or two, each for as long as the
// disk takes to answer. So several are read at a time.
const (
	aheadLayers = 16      // that are read, or wait to be merged
	aheadMost   = 1 << 13 // chunks of a layer that is read in advance, at most
)

// ahead reads layers in advance.
type ahead struct {
	ctx     context.Context
	layers  []Layer
	begun   int // so many of them
	found   []chan []result
	reading sync.WaitGroup
}

type result struct {
	Exception
	err error
}

// readAhead begins to read layers. It goes on until cancel is called, which returns when
// nobody reads any more.
func readAhead(ctx context.Context, layers []Layer) (a *ahead, cancel func()) {
	ctx, end := context.WithCancel(ctx)
	a = &ahead{ctx: ctx, layers: layers, found: make([]chan []result, len(layers))}
	return a, func() {
		end()
		a.reading.Wait()
	}
}

// readAll reads a layer. A panic there becomes an error, the last result: nobody could
// recover from it, since the goroutine is ahead's own.
func readAll(ctx context.Context, l Layer) (all []result) {
	defer func() {
		if r := recover(); r != nil {
			err := fmt.Errorf("panic: %v", r)
			klog.FromContext(ctx).Error(err, "Panic", "stack", string(debug.Stack()))
			all = append(all, result{err: err})
		}
	}()
	for e, err := range l.Read(ctx) {
		all = append(all, result{e, err})
	}
	return all
}

// exceptions yields those of layer i. It is called for one after the other.
func (a *ahead) exceptions(i int) iter.Seq2[Exception, error] {
	for ; a.begun < min(i+aheadLayers, len(a.layers)); a.begun++ {
		l := a.layers[a.begun]
		if l.Used.Bytes()/l.Chunk > aheadMost {
			continue // it is read in its turn
		}
		c := make(chan []result, 1)
		a.found[a.begun] = c
		a.reading.Go(func() { c <- readAll(a.ctx, l) })
	}
	if a.found[i] == nil {
		return a.layers[i].Read(a.ctx)
	}
	return func(yield func(Exception, error) bool) {
		all := <-a.found[i]
		a.found[i] = nil
		for _, r := range all {
			if !yield(r.Exception, r.err) {
				return
			}
		}
	}
}
