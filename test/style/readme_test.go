package style

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// goBlock is a block of Go in a page.
var goBlock = regexp.MustCompile("(?s)```go\n(.*?)```")

// withoutIndent returns the lines of a text without their indentation.
func withoutIndent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(strings.TrimSpace(line) + "\n")
	}
	return b.String()
}

// TestReadme_snippets: each library has a README, and its Go snippets equal code of
// the library's examples, which the compiler checks.
func TestReadme_snippets(t *testing.T) {
	for _, name := range []string{"cow", "dm", "lvm2", "size"} {
		text, err := os.ReadFile("../../pkg/" + name + "/README.md")
		if err != nil {
			t.Error(err)
			continue
		}
		examples, err := filepath.Glob("../../pkg/" + name + "/example*_test.go")
		if err != nil {
			t.Fatal(err)
		}
		var code strings.Builder
		for _, path := range examples {
			source, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			code.WriteString(withoutIndent(string(source)))
		}
		blocks := goBlock.FindAllStringSubmatch(string(text), -1)
		if len(blocks) == 0 {
			t.Errorf("pkg/%s/README.md has no Go snippet", name)
		}
		for _, b := range blocks {
			if !strings.Contains(code.String(), withoutIndent(b[1])) {
				t.Errorf("pkg/%s/README.md has a snippet that is in no example:\n%s", name, b[1])
			}
		}
	}
}
