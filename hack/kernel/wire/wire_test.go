package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

// TestFrames_roundTrip: frames are read as they were written.
func TestFrames_roundTrip(t *testing.T) {
	var line bytes.Buffer
	w := NewWriter(&line)
	sent := []struct {
		t       Type
		payload string
	}{{Ready, ""}, {Stdout, "a\r\n\x00\xff"}, {Stderr, strings.Repeat("x", 100000)}, {Exit, "\x07"}}
	for _, f := range sent {
		if err := w.Write(f.t, []byte(f.payload)); err != nil {
			t.Fatal(err)
		}
	}
	r := NewReader(&line)
	for _, f := range sent {
		typ, payload, err := r.Read()
		if err != nil || typ != f.t || string(payload) != f.payload {
			t.Fatalf("got %q of %d bytes, %v; want %q of %d bytes", typ, len(payload), err, f.t, len(f.payload))
		}
	}
	if _, _, err := r.Read(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v, want EOF", err)
	}
}

// TestFrames_damaged: a damaged frame is an error.
func TestFrames_damaged(t *testing.T) {
	for name, in := range map[string]string{
		"kernel message": "[    1.0] Oops: 0000 and more text",
		"cut head":       "o\x00\x00",
		"cut payload":    "o\x00\x00\x00\x05abc",
	} {
		if typ, payload, err := NewReader(strings.NewReader(in)).Read(); err == nil {
			t.Errorf("%s: read %q %q, want an error", name, typ, payload)
		}
	}
}
