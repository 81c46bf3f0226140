package pool

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/directio"
	"github.com/csi-dmsnap/csi-dmsnap/internal/point"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	foldRun      = size.MiB               // largest read and write
	foldPiece    = 4 * size.MiB           // bytes copied between two checks whether the disks are quiet
	foldRuns     = 64                     // runs copied between two checks, if they are short
	foldWriters  = 8                      // concurrent writers: the kernel writes the exceptions of many writes together
	foldMoment   = 10 * time.Millisecond  // time for which the disks must be quiet
	foldPatience = 500 * time.Millisecond // time after which a piece is copied even if the disks are busy
)

// foldExtent is a run of the heir's chunks, in bytes.
type foldExtent struct{ at, length size.Bytes }

// copy reads the chunks that the heir lacks from the heir's device and writes them
// back, so that the kernel puts them into the heir's store. The chunks are on the
// disk when copy returns. copy calls next before each piece.
func (f *fold) copy(ctx context.Context, next func(context.Context) error) error {
	v, err := f.pool.latest()
	if err != nil {
		return err
	}
	_, heir, _, err := f.pair(v)
	if err != nil {
		return err
	}
	todo, chunk, length := f.todo(), heir.Chunk.Bytes(), heir.Length.Bytes()
	var piece []foldExtent
	var bytes size.Bytes
	flush := func() error {
		if len(piece) == 0 {
			return nil
		}
		if err := next(ctx); err != nil {
			return err
		}
		err := f.rewrite(piece)
		piece, bytes = piece[:0], 0
		return err
	}
	for first, n := range todo.Runs(max(1, uint64(foldRun/chunk))) {
		at := size.Bytes(first) * chunk
		e := foldExtent{at, min(size.Bytes(n)*chunk, length-at)} // the last chunk may be partial
		piece, bytes = append(piece, e), bytes+e.length
		if bytes >= foldPiece || len(piece) == foldRuns {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(f.file.Fd())); err != nil {
		return fmt.Errorf("flushing %s: %w", f.path, err)
	}
	for first, n := range todo.Runs(todo.Count() + 1) {
		for c := first; c < first+n; c++ {
			f.held.Add(c)
		}
	}
	return nil
}

// rewrite reads extents of the heir's device and writes them back.
func (f *fold) rewrite(piece []foldExtent) error {
	buf, free, err := directio.Buffer(foldWriters * foldRun)
	if err != nil {
		return err
	}
	defer free()
	work := make(chan foldExtent, len(piece))
	for _, e := range piece {
		work <- e
	}
	close(work)
	var failed [foldWriters]error
	var writers sync.WaitGroup
	for i := range foldWriters {
		own := buf[i*int(foldRun):][:foldRun]
		writers.Go(func() {
			for e := range work {
				if _, err := f.file.ReadAt(own[:e.length], int64(e.at)); err != nil {
					failed[i] = fmt.Errorf("reading %s: %w", f.path, err)
					return
				}
				if point.On {
					point.Before("fold into", f.path)
				}
				if _, err := f.file.WriteAt(own[:e.length], int64(e.at)); err != nil {
					failed[i] = fmt.Errorf("writing %s: %w", f.path, err)
					return
				}
			}
		})
	}
	writers.Wait()
	return errors.Join(failed[:]...)
}

// giveWay waits while others use the disks, but at most for foldPatience. It
// returns an error if the layers cannot be folded any more.
func (f *fold) giveWay(ctx context.Context) error {
	v, err := f.pool.latest()
	if err != nil {
		return err
	}
	if _, _, _, err := f.pair(v); err != nil {
		return err
	}
	for deadline := time.Now().Add(foldPatience); ; {
		before, known := disksUse(v)
		select {
		case <-time.After(foldMoment):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		after, still := disksUse(v)
		quiet := known && still && before.requests == after.requests && before.flying+after.flying == 0
		if quiet || time.Now().After(deadline) {
			return nil
		}
	}
}
