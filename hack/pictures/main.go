// Command pictures draws the pictures of the documentation: for each text file
// in a directory, an SVG with the same name. parse.go describes the language of
// the texts. A test fails if a picture does not match its text.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	dir := flag.String("dir", "docs/pictures", "directory of the texts and the pictures")
	flag.Parse()
	if err := drawAll(*dir); err != nil {
		fmt.Fprintln(os.Stderr, "pictures:", err)
		os.Exit(1)
	}
}

func drawAll(dir string) error {
	texts, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return err
	}
	if len(texts) == 0 {
		return fmt.Errorf("no *.txt in %s", dir)
	}
	for _, path := range texts {
		svg, err := drawFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(pictureOf(path), svg, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func pictureOf(text string) string { return strings.TrimSuffix(text, ".txt") + ".svg" }

func drawFile(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	p, err := parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p.svg(), nil
}
