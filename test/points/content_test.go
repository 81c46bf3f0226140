//go:build kernel && points

package points

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const block = 4 * size.KiB

// fill makes the content of a block that was written as this version.
func fill(b []byte, at int, version uint32) {
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint32(b[i:], version)
		binary.LittleEndian.PutUint32(b[i+4:], uint32(at)^version<<16^0x5a5a5a5a)
	}
}

// object is a volume or snapshot with its expected content: the version of each
// block.
type object struct {
	name, lv string
	snapshot bool
	size     size.Bytes
	path     string // of an active volume
	certain  bool   // acknowledged
	gone     bool   // its deletion was requested
	hidden   bool   // not compared
	second   bool   // in the second pool

	// base has the versions when the object's writes began, and log has the
	// writes since then, in order. The last write may still be in progress. If
	// the object was cut or copied from another one (of) while that one was
	// written, it has the first writes of the other's log: at least from, and
	// at most to of them.
	base     []uint32
	log      []write
	acked    int
	of       *object
	from, to int

	mu     sync.Mutex // held during a write
	writer *writer
	reader *reader
}

type write struct {
	block   int
	version uint32
}

var versions struct {
	sync.Mutex
	last uint32
}

func nextVersion() uint32 {
	versions.Lock()
	defer versions.Unlock()
	versions.last++
	return versions.last
}

// after returns the versions that the writes make of base.
func after(base []uint32, log []write, blocks int) []uint32 {
	now := make([]uint32, blocks)
	copy(now, base)
	for _, w := range log {
		if w.block < blocks {
			now[w.block] = w.version
		}
	}
	return now
}

// fresh returns the object with its content, but without its history, writers
// and readers.
func (o *object) fresh() *object {
	return &object{
		name: o.name, lv: o.lv, snapshot: o.snapshot, size: o.size, certain: o.certain, gone: o.gone, hidden: o.hidden, second: o.second,
		base: after(o.base, o.log, o.blocks()), to: -1,
	}
}

func (o *object) blocks() int { return int(o.size / block) }

// mustBe compares the versions that were read with the expected ones. It then
// knows what was uncertain: the first writes of the other object's log, and the
// last write.
func (o *object) mustBe(seen []uint32) error {
	if len(seen) != o.blocks() {
		return fmt.Errorf("%s has %d blocks, want %d", o.name, len(seen), o.blocks())
	}
	if o.base == nil && o.of != nil {
		if err := o.begins(seen); err != nil {
			return err
		}
	}
	o.settleLast(seen)
	return differ(o.name, seen, after(o.base, o.log, o.blocks()))
}

// settleLast decides by the versions seen whether the last write, if it failed,
// was done.
func (o *object) settleLast(seen []uint32) {
	if o.acked < len(o.log) {
		w := o.log[o.acked]
		if seen[w.block] == w.version {
			o.acked++
		}
		o.log = o.log[:o.acked]
	}
}

// begins finds out how many writes of the other object's log the object has.
func (o *object) begins(seen []uint32) error {
	at := map[uint32]int{}
	for i, w := range o.of.log {
		at[w.version] = i
	}
	n := o.from
	for b, v := range seen {
		if i, there := at[v]; there && o.of.log[i].block == b {
			n = max(n, i+1)
		}
	}
	if o.to >= 0 && n > o.to {
		return fmt.Errorf("%s has write %d of %s, but was acknowledged before any write after %d began", o.name, n, o.of.name, o.to)
	}
	base := after(o.of.base, o.of.log[:n], len(seen))
	if err := differ(o.name, seen, base); err != nil {
		return fmt.Errorf("the last write to %s, from %d to %d, that was seen is %d: %w", o.of.name, o.from, o.to, n, err)
	}
	o.base = base
	return nil
}

func differ(name string, seen, want []uint32) error {
	wrong, first := 0, -1
	for b := range want {
		if seen[b] != want[b] {
			if wrong++; first < 0 {
				first = b
			}
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d wrong blocks in %s; the first is block %d with version %#x, want %#x", wrong, name, first, seen[first], want[first])
	}
	return nil
}

// bad stands for the content of a block that nobody wrote.
const bad = ^uint32(0)

// readBlocks reads a part of a device and returns the version of each block.
func readBlocks(path string, from, length size.Bytes) ([]uint32, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := directBuffer(min(size.MiB, length))
	defer unix.Munmap(b)
	var seen []uint32
	want := make([]byte, block)
	for at := from; at < from+length; at += size.Bytes(len(b)) {
		if _, err := f.ReadAt(b, int64(at)); err != nil {
			return nil, err
		}
		for i := size.Bytes(0); i < size.Bytes(len(b)); i += block {
			got := b[i : i+block]
			version := binary.LittleEndian.Uint32(got)
			if version == 0 {
				clear(want)
			} else {
				fill(want, int((at+i)/block), version)
			}
			if string(got) != string(want) {
				version = bad
			}
			seen = append(seen, version)
		}
	}
	return seen, nil
}

func directBuffer(n size.Bytes) []byte {
	b, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		panic(err)
	}
	return b
}

// writer writes single blocks to an active volume, one after the other, in a
// region for which the smallest store has room.
type writer struct {
	o     *object
	file  *os.File
	stop  chan struct{}
	ended chan struct{}
	err   error // valid once ended is closed
}

const (
	hotBlocks  = 256 // 1 MiB
	writePause = 3 * time.Millisecond
)

func (o *object) startWriter() error {
	if o.acked < len(o.log) {
		seen, err := readBlocks(o.path, 0, o.size)
		if err != nil {
			return err
		}
		o.settleLast(seen)
	}
	f, err := os.OpenFile(o.path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	w := &writer{o: o, file: f, stop: make(chan struct{}), ended: make(chan struct{})}
	o.writer = w
	go w.loop()
	return nil
}

func (w *writer) loop() {
	defer close(w.ended)
	defer w.file.Close()
	b := directBuffer(block)
	defer unix.Munmap(b)
	for {
		select {
		case <-w.stop:
			return
		case <-time.After(writePause):
		}
		if w.err = w.o.write(w.file, b, rand.IntN(hotBlocks)); w.err != nil {
			return
		}
	}
}

// write writes one block and logs it.
func (o *object) write(f *os.File, b []byte, at int) error {
	v := nextVersion()
	fill(b, at, v)
	o.mu.Lock()
	o.log = append(o.log, write{at, v})
	o.mu.Unlock()
	if _, err := f.WriteAt(b, int64(at)*int64(block)); err != nil {
		return err
	}
	o.mu.Lock()
	o.acked = len(o.log)
	o.mu.Unlock()
	return nil
}

// stopWriter ends the writer; a write that hangs is an error.
func (o *object) stopWriter() error {
	w := o.writer
	if w == nil {
		return nil
	}
	o.writer = nil
	close(w.stop)
	select {
	case <-w.ended:
		return w.err
	case <-time.After(10 * time.Second):
		return &hangError{"a write to " + o.name + " did not end"}
	}
}

// marks returns how many writes were acknowledged, and how many have begun.
func (o *object) marks() (acked, begun int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.acked, len(o.log)
}

// continues waits until the writer has completed another write. It returns
// errCut if the worker has died.
func (o *object) continues(w *client) error {
	if o.writer == nil {
		return nil
	}
	_, begun := o.marks()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		select {
		case <-o.writer.ended:
			return fmt.Errorf("writing to %s: %w", o.name, o.writer.err)
		case <-w.ended:
			return w.call("Arm", 0, &struct{}{}, callLimit)
		default:
		}
		if acked, _ := o.marks(); acked > begun {
			return nil
		}
		if time.Now().After(end) {
			return &hangError{"a write to " + o.name + " did not end"}
		}
	}
}

// reader repeatedly reads an active volume that nobody writes to, and compares
// its content.
type reader struct {
	stop  chan struct{}
	ended chan struct{}
	err   error // valid once ended is closed
}

const readPiece = 64 * size.KiB

func (o *object) startReader() error {
	f, err := os.Open(o.path) // keeps the device open
	if err != nil {
		return err
	}
	w := &reader{stop: make(chan struct{}), ended: make(chan struct{})}
	o.reader = w
	want, path := after(o.base, o.log, o.blocks()), o.path
	go func() {
		defer close(w.ended)
		defer f.Close()
		for {
			select {
			case <-w.stop:
				return
			case <-time.After(8 * time.Millisecond):
			}
			at := rand.IntN(int(o.size/readPiece)) * int(readPiece/block)
			var seen []uint32
			if seen, w.err = readBlocks(path, size.Bytes(at)*block, readPiece); w.err == nil {
				w.err = differ(fmt.Sprintf("%s, read from block %d", o.name, at), seen, want[at:at+len(seen)])
			}
			if w.err != nil {
				return
			}
		}
	}()
	return nil
}

// stopReader ends the reader; a read that hangs is an error.
func (o *object) stopReader() error {
	w := o.reader
	if w == nil {
		return nil
	}
	o.reader = nil
	close(w.stop)
	select {
	case <-w.ended:
		return w.err
	case <-time.After(10 * time.Second):
		return &hangError{"a read of " + o.name + " did not end"}
	}
}
