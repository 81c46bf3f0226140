package worker

import (
	"os"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/directio"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/powercut/history"
)

// writer writes to an active volume, one write after the other, mostly in a
// small region that moves. A live layer's store must not fill faster than the
// pool promises to extend it.
type writer struct {
	session *session
	id      uint64
	file    *os.File
	mu      sync.Mutex // held during a write
	stop    bool

	unflushed []history.Event // writes to a disk with a cache since the last flush
}

const (
	largestWrite  = 16               // blocks
	hotRegion     = 64               // blocks
	writePause    = 16               // most milliseconds between two writes
	mostUnflushed = 6                // writes between two flushes, about
	discardEvery  = 30               // writes, on disks with a cache
	pauseLimit    = 20 * time.Second // how long a read or a write may take
)

// startWriter begins to write to the volume, which is active.
func (s *session) startWriter(id uint64) {
	path := s.path(id)
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		fail("opening an active volume: %v", err)
	}
	w := &writer{session: s, id: id, file: f}
	s.mu.Lock()
	if s.writers[id] != nil {
		fail("volume %d has a writer already", id)
	}
	s.writers[id] = w
	s.mu.Unlock()
	go w.loop()
}

// stopWriter ends writing to the volume and closes its device.
func (s *session) stopWriter(id uint64) {
	s.mu.Lock()
	w := s.writers[id]
	delete(s.writers, id)
	s.mu.Unlock()
	if w == nil {
		return
	}
	w.pause()
	w.stop = true
	w.file.Close()
	w.mu.Unlock()
}

// pause waits until no write is running, flushes, and prevents further writes
// until w.mu is unlocked.
func (w *writer) pause() {
	paused := make(chan struct{})
	go func() { w.mu.Lock(); close(paused) }()
	select {
	case <-paused:
		w.flush()
	case <-time.After(pauseLimit):
		hung("a write to %s did not end", w.file.Name())
	}
}

func (w *writer) loop() {
	b := directBuffer(largestWrite * history.Block)
	defer unix.Munmap(b)
	r := w.session.random
	hot, left := 0, 0
	for {
		time.Sleep(time.Duration(r.n(writePause*1000)) * time.Microsecond)
		blocks := w.blocks()
		if left == 0 {
			hot, left = r.n(max(1, blocks-hotRegion)), 20+r.n(60)
		}
		left--
		n := 1
		if r.n(3) == 0 {
			n += r.n(largestWrite)
		}
		block := min(hot+r.n(hotRegion), blocks-n)
		if !w.write(b, block, n) {
			return
		}
	}
}

// blocks returns the number of blocks that the volume certainly has.
func (w *writer) blocks() (n int) {
	w.session.log.View(func(m *history.Model) {
		if o := m.Objects[w.id]; o != nil {
			n = int(o.Size / history.Block)
		}
	})
	return n
}

// write writes n blocks by one call. It returns false if the writer was
// stopped.
func (w *writer) write(b []byte, block, n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stop {
		return false
	}
	if w.overlaps(block, n) {
		w.flush()
	}
	op := history.Op("")
	if w.session.options.cached && w.session.random.n(discardEvery) == 0 {
		op = history.Discard
	}
	e, _ := w.session.log.Begin(func(m *history.Model) (history.Event, bool) {
		v := m.Next()
		return history.Event{Kind: history.Write, Op: op, ID: w.id, Call: v, Version: v, Block: block, Count: n}, true
	})
	for i := range n {
		history.Fill(b[i*int(history.Block):(i+1)*int(history.Block)], block+i, e.Version)
	}
	at := int64(block) * int64(history.Block)
	if op == history.Discard {
		w.discard(at, int64(n)*int64(history.Block))
	} else if _, err := w.file.WriteAt(b[:n*int(history.Block)], at); err != nil {
		fail("writing: %v", err)
	}
	if !w.session.options.cached {
		w.session.log.End(history.Event{Kind: history.Wrote, ID: w.id, Call: e.Call})
		return true
	}
	w.unflushed = append(w.unflushed, e)
	if w.session.random.n(mostUnflushed) == 0 {
		w.flush()
	}
	return true
}

// discard discards a part of the volume. Not all devices can do that.
func (w *writer) discard(at, length int64) {
	part := [2]uint64{uint64(at), uint64(length)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, w.file.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&part)))
	if errno != 0 && errno != unix.EOPNOTSUPP {
		fail("discarding: %v", errno)
	}
}

// overlaps reports whether an unflushed write has one of n blocks. The order in
// which a disk writes two of them is unknown.
func (w *writer) overlaps(block, n int) bool {
	return slices.ContainsFunc(w.unflushed, func(e history.Event) bool { return block < e.Block+e.Count && e.Block < block+n })
}

// flush makes all writes durable.
func (w *writer) flush() {
	if len(w.unflushed) == 0 {
		return
	}
	if err := unix.Fdatasync(int(w.file.Fd())); err != nil {
		fail("flushing: %v", err)
	}
	for _, e := range w.unflushed {
		w.session.log.End(history.Event{Kind: history.Wrote, ID: w.id, Call: e.Call})
	}
	w.unflushed = nil
}

// directBuffer returns memory that O_DIRECT accepts, for the life of the process.
func directBuffer(n size.Bytes) []byte {
	b, _, err := directio.Buffer(n)
	if err != nil {
		fail("allocating memory for O_DIRECT: %v", err)
	}
	return b
}
