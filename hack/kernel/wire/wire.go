// Package wire is the protocol between the runner and the first process of the
// test kernel, over one serial line. Both directions carry frames, each of a
// type byte, a length and a payload.
package wire

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// Type says what a frame carries.
type Type byte

// The types of frames. The runner sends nothing before it has received Ready,
// because until then the line echoes and translates its input.
const (
	Ready   Type = 'r' // guest: the line is raw, the command is about to start
	Stdout  Type = 'o' // guest: bytes of the command's standard output
	Stderr  Type = 'e' // guest: bytes of the command's standard error
	Log     Type = 'l' // guest: a line for the kernel log
	Exit    Type = 'x' // guest: the exit code as one byte; always the last frame
	Stdin   Type = 'i' // runner: bytes for the command's standard input; empty at its end
	Signal  Type = 's' // runner: a signal for the command, its number as one byte
	Blocked Type = 'b' // runner: have the kernel log which processes are blocked
)

const maxPayload = 1 << 20

// Writer writes frames. Several goroutines may use it at the same time.
type Writer struct {
	mu sync.Mutex
	w  io.Writer
}

// NewWriter returns a Writer on w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write sends one frame.
func (w *Writer) Write(t Type, payload []byte) error {
	frame := make([]byte, 5, 5+len(payload))
	frame[0] = byte(t)
	binary.BigEndian.PutUint32(frame[1:], uint32(len(payload)))
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.w.Write(append(frame, payload...))
	return err
}

// Reader reads frames.
type Reader struct{ r *bufio.Reader }

// NewReader returns a Reader on r.
func NewReader(r io.Reader) *Reader { return &Reader{bufio.NewReaderSize(r, 64<<10)} }

// Read returns the next frame, or io.EOF if the line ends between two frames.
func (r *Reader) Read() (Type, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxPayload {
		return 0, nil, fmt.Errorf("damaged frame on the serial line: %q", head)
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(r.r, payload); err != nil {
		return 0, nil, fmt.Errorf("cut frame on the serial line: %w", err)
	}
	return Type(head[0]), payload, nil
}
