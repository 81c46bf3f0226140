package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPictures_current: each picture is the one that make pictures would draw.
func TestPictures_current(t *testing.T) {
	texts, err := filepath.Glob("../../docs/pictures/*.txt")
	if err != nil || len(texts) == 0 {
		t.Fatalf("no texts of pictures: %v", err)
	}
	for _, path := range texts {
		want, err := drawFile(path)
		if err != nil {
			t.Error(err)
			continue
		}
		have, err := os.ReadFile(pictureOf(path))
		if err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s does not match its text (%v); run make pictures", pictureOf(path), err)
		}
		wellFormed(t, path, want)
	}
}

func wellFormed(t *testing.T, path string, svg []byte) {
	d := xml.NewDecoder(bytes.NewReader(svg))
	for {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Errorf("%s: %v", path, err)
			return
		}
	}
}

// TestParse_mistakes: a text with a mistake is refused.
func TestParse_mistakes(t *testing.T) {
	const good = "title a & b\nbox a 0 0 1 device x|y\nbox b 0 1 1 store\narrow a b copy <words>\ntext 0 2 more\n"
	if p, err := parse(good); err != nil || len(p.arrows) != 1 || len(p.boxes[0].lines) != 2 {
		t.Fatalf("%+v, %v", p, err)
	}
	for from, to := range map[string]string{
		"title a & b": "", "box b": "box a", "device": "devil", "0 1 1": "0 x 1", "arrow a b": "arrow a c", "text": "txt", "2 more": "2",
	} {
		if p, err := parse(strings.Replace(good, from, to, 1)); err == nil {
			t.Errorf("with %q for %q: %+v, want an error", to, from, p)
		}
	}
}
