package cow

import (
	"context"
	"errors"
	"iter"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestMerge_readsAhead: short layers are read several at a time and merged in
// order, a long layer is read when it is merged, and no read outlives Merge.
func TestMerge_readsAhead(t *testing.T) {
	const chunk = MinChunk
	var together sync.WaitGroup
	together.Add(aheadLayers - 1) // without the long layer
	met := make(chan struct{})
	go func() { together.Wait(); close(met) }()
	var layers []Layer
	for i := range 3 * aheadLayers {
		used := 3 * size.Sectors(chunk/512)
		if i == 3 {
			used = 2 * aheadMost * size.Sectors(chunk/512)
		}
		layers = append(layers, Layer{Chunk: chunk, Length: 8 * 1024, Used: used, Read: func(context.Context) iter.Seq2[Exception, error] {
			return func(yield func(Exception, error) bool) {
				if i < aheadLayers && i != 3 {
					together.Done()
					select {
					case <-met:
					case <-time.After(10 * time.Second):
						t.Error("the layers are not read in parallel")
					}
				}
				yield(Exception{Origin: uint64(i / 2), Store: 2}, nil)
			}
		}})
	}
	at, base := uint64(0), uint64(0)
	for e, err := range Merge(context.Background(), layers) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Origin != at || e.Store != base+2 {
			t.Errorf("chunk %d is at %d, want %d at %d", e.Origin, e.Store, at, base+2)
		}
		base += uint64((layers[2*at].Used + layers[2*at+1].Used).Bytes() / chunk)
		at++
	}
	if at != 3*aheadLayers/2 {
		t.Errorf("%d chunks", at)
	}

	bad := errors.New("bad")
	var reading sync.WaitGroup
	for i := range layers {
		layers[i].Used = 3 * size.Sectors(chunk/512)
		layers[i].Read = func(ctx context.Context) iter.Seq2[Exception, error] {
			return func(yield func(Exception, error) bool) {
				reading.Add(1)
				defer reading.Done()
				if i == 2 {
					yield(Exception{}, bad)
					return
				}
				if i > 2 {
					<-ctx.Done()
				}
			}
		}
	}
	for _, err := range Merge(context.Background(), layers) {
		if !errors.Is(err, bad) {
			t.Error(err)
		}
	}
	reading.Wait()
}

// TestMerge_readPanics: a panic in the Read of a layer that is read in advance
// becomes a panic of Merge, and does not end the process.
func TestMerge_readPanics(t *testing.T) {
	layers := make([]Layer, 3)
	for i := range layers {
		layers[i] = Layer{Chunk: MinChunk, Length: 1024, Used: 3 * size.Sectors(MinChunk/512), Read: func(context.Context) iter.Seq2[Exception, error] {
			return func(yield func(Exception, error) bool) {
				if yield(Exception{Origin: uint64(i), Store: 2}, nil) && i == 1 {
					panic("no such chunk")
				}
			}
		}}
	}
	defer func() {
		p, is := recover().(*ReadPanic)
		if !is || p.Value != "no such chunk" || !strings.Contains(string(p.Stack), "TestMerge_readPanics") {
			t.Errorf("the merge panicked with %v", p)
		}
	}()
	for _, err := range Merge(context.Background(), layers) {
		if err != nil {
			t.Error(err)
		}
	}
	t.Error("the merge did not panic")
}
