package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
)

// kernelLog keeps the last part of the kernel's output, to show it after a
// failure.
type kernelLog struct {
	mu   sync.Mutex
	buf  []byte
	live bool
}

const kernelLogBytes = 256 << 10

// Write appends the kernel's output to the log.
func (l *kernelLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.live {
		os.Stderr.Write(p)
	}
	l.buf = append(l.buf, p...)
	if len(l.buf) > 2*kernelLogBytes {
		l.buf = append([]byte(nil), l.buf[len(l.buf)-kernelLogBytes:]...)
	}
	return len(p), nil
}

// booted drops what the kernel printed while it booted, which does not help to
// explain a failed test.
func (l *kernelLog) booted() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = nil
}

// show prints the log, unless Write has printed it already.
func (l *kernelLog) show(w io.Writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.live {
		return
	}
	text := bytes.ReplaceAll(l.buf, []byte("\r\n"), []byte("\n"))
	fmt.Fprintf(w, "testkernel: kernel log:\n%s\ntestkernel: end of the kernel log\n", bytes.TrimRight(text, "\n"))
}
