package history

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/directio"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Log writes a history to a disk, and bypasses every cache, so that events
// survive a power cut. The disk has one event per line, and zeroes after the
// last one.
type Log struct {
	began time.Time
	file  *os.File

	mu      sync.Mutex
	flushed *sync.Cond
	model   *Model
	tail    []byte // not yet durable, from the beginning of a block
	offset  int64  // where tail begins on the disk
	length  int64  // of everything that was logged
	durable int64
	failed  error

	buffer []byte // page-aligned, for direct I/O
	dirty  chan struct{}
}

const logBuffer = size.MiB

// OpenLog opens a log on a zeroed disk. It continues the history that model
// has.
func OpenLog(disk string, model *Model) (*Log, error) {
	f, err := os.OpenFile(disk, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	b, _, err := directio.Buffer(logBuffer)
	if err != nil {
		return nil, err
	}
	l := &Log{began: time.Now(), file: f, model: model, buffer: b, dirty: make(chan struct{}, 1)}
	l.flushed = sync.NewCond(&l.mu)
	go l.flush()
	return l, nil
}

// Begin logs the event that announce returns, unless announce returns false.
// Begin returns once the event is on the disk, so that the announced operation
// may begin.
func (l *Log) Begin(announce func(m *Model) (Event, bool)) (Event, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := announce(l.model)
	if !ok {
		return e, false
	}
	l.add(&e)
	for want := l.length; l.durable < want && l.failed == nil; {
		l.flushed.Wait()
	}
	l.check()
	return e, true
}

// End logs an event that has happened. It does not wait for the disk.
func (l *Log) End(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(&e)
	l.check()
}

// View calls f with the model, which must not be changed.
func (l *Log) View(f func(m *Model)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l.model)
}

// check panics if the log does not work, because nothing can be reported then.
func (l *Log) check() {
	if l.failed != nil {
		panic(fmt.Sprintf("writing the history: %v", l.failed))
	}
}

func (l *Log) add(e *Event) {
	e.At = time.Since(l.began).Milliseconds()
	if err := l.model.Apply(*e); err != nil {
		l.failed = fmt.Errorf("%+v: %w", *e, err)
		return
	}
	line, err := json.Marshal(e)
	if err != nil {
		l.failed = err
		return
	}
	l.tail = append(append(l.tail, line...), '\n')
	l.length += int64(len(line)) + 1
	select {
	case l.dirty <- struct{}{}:
	default:
	}
}

// flush writes the added events. One write has all events that wait.
func (l *Log) flush() {
	for range l.dirty {
		l.mu.Lock()
		n := copy(l.buffer, l.tail)
		whole := int(size.Bytes(n).RoundUp(Block))
		clear(l.buffer[n:whole])
		offset := l.offset
		if keep := n / int(Block) * int(Block); keep > 0 {
			l.tail = append([]byte(nil), l.tail[keep:]...)
			l.offset += int64(keep)
		}
		if len(l.tail) > int(Block) { // the tail did not fit the buffer
			select {
			case l.dirty <- struct{}{}:
			default:
			}
		}
		l.mu.Unlock()
		_, err := l.file.WriteAt(l.buffer[:whole], offset)
		l.mu.Lock()
		if err != nil {
			l.failed = err
		}
		l.durable = max(l.durable, offset+int64(n))
		l.flushed.Broadcast()
		l.mu.Unlock()
	}
}

// Follow reads a log as it grows.
type Follow struct {
	File   *os.File
	offset int64
	rest   []byte
	buffer [64 << 10]byte
}

// Next returns the events that were added to the log since the last call.
func (f *Follow) Next() ([]Event, error) {
	var out []Event
	for {
		n, _ := f.File.ReadAt(f.buffer[:], f.offset)
		text := f.buffer[:n]
		if end := bytes.IndexByte(text, 0); end >= 0 {
			text = text[:end]
		}
		if len(text) == 0 {
			return out, nil
		}
		f.offset += int64(len(text))
		f.rest = append(f.rest, text...)
		for {
			line, rest, ok := bytes.Cut(f.rest, []byte{'\n'})
			if !ok {
				break
			}
			f.rest = rest
			var e Event
			if err := json.Unmarshal(line, &e); err != nil {
				return out, fmt.Errorf("line %q of the log: %w", line, err)
			}
			out = append(out, e)
		}
	}
}

// Save writes the model to a file.
func (m *Model) Save(path string) error {
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(m); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o600)
}

// LoadModel reads a model that Save wrote.
func LoadModel(path string) (*Model, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m := NewModel()
	return m, gob.NewDecoder(f).Decode(m)
}
