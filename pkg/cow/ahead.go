package cow

import (
	"context"
	"fmt"
	"iter"
	"runtime/debug"
	"sync"
)

// Most layers are short: reading a short layer takes one or two requests, and nearly
// all of that time is the latency of the disk. So several layers are read in parallel.
const (
	aheadLayers = 16      // layers that are being read or wait to be merged
	aheadMost   = 1 << 13 // most chunks of a layer that is read in advance
)

// ahead reads layers in advance.
type ahead struct {
	ctx     context.Context
	layers  []Layer
	begun   int           // number of layers that have been considered
	found   []chan result // by layer; nil if the layer is not read in advance
	reading sync.WaitGroup
}

// result is the result of reading a layer in advance.
type result struct {
	elements []element
	panic    *ReadPanic // nil if Read did not panic
}

// element is an element of the sequence that a Read returns.
type element struct {
	Exception
	err error
}

// ReadPanic is the value with which Merge panics if the Read of a layer panics in
// a goroutine of Merge's own.
type ReadPanic struct {
	Value any    // value of the panic
	Stack []byte // stack of the goroutine that panicked, as debug.Stack returns it
}

// Error describes the panic in one line, without the stack.
func (p *ReadPanic) Error() string { return fmt.Sprintf("panic while reading a layer: %v", p.Value) }

// readAhead prepares to read layers in advance. cancel ends the reads and waits for
// their goroutines.
func readAhead(ctx context.Context, layers []Layer) (a *ahead, cancel func()) {
	ctx, end := context.WithCancel(ctx)
	a = &ahead{ctx: ctx, layers: layers, found: make([]chan result, len(layers))}
	return a, func() {
		end()
		a.reading.Wait()
	}
}

// readAll reads a layer. It recovers from a panic, because the caller of Merge cannot
// recover from a panic in another goroutine.
func readAll(ctx context.Context, l Layer) (r result) {
	defer func() {
		if p := recover(); p != nil {
			r.panic = &ReadPanic{p, debug.Stack()}
		}
	}()
	for e, err := range l.Read(ctx) {
		r.elements = append(r.elements, element{e, err})
	}
	return r
}

// exceptions yields the exceptions of layer i. It must be called for all layers, in
// order.
func (a *ahead) exceptions(i int) iter.Seq2[Exception, error] {
	for ; a.begun < min(i+aheadLayers, len(a.layers)); a.begun++ {
		l := a.layers[a.begun]
		if l.Used.Bytes()/l.Chunk > aheadMost {
			continue // a long layer is read when it is merged
		}
		c := make(chan result, 1)
		a.found[a.begun] = c
		a.reading.Go(func() { c <- readAll(a.ctx, l) })
	}
	if a.found[i] == nil {
		return a.layers[i].Read(a.ctx)
	}
	return func(yield func(Exception, error) bool) {
		r := <-a.found[i]
		a.found[i] = nil
		for _, e := range r.elements {
			if !yield(e.Exception, e.err) {
				return
			}
		}
		if r.panic != nil {
			panic(r.panic)
		}
	}
}
