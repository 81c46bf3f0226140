package style

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	row   = regexp.MustCompile(`(?m)^\| ([^|]+) \| [^|\n]+ \|$`)
	aside = regexp.MustCompile(`\([^)]*\)`)
)

// glossary returns the words that docs/design/README.md explains, in its order.
func glossary(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../docs/design/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, words, found := strings.Cut(string(text), "\n## Words\n")
	words, _, _ = strings.Cut(words, "\n## ")
	if !found {
		t.Fatal("docs/design/README.md has no words")
	}
	var all []string
	for _, m := range row.FindAllStringSubmatch(words, -1) {
		for word := range strings.SplitSeq(aside.ReplaceAllString(m[1], ""), ",") {
			if word = strings.TrimSpace(word); word != "word" && word != "---" {
				all = append(all, word)
			}
		}
	}
	if len(all) < 50 {
		t.Fatalf("only %d words were found", len(all))
	}
	return all
}

// TestGlossary_eachWordOnce: the glossary explains each word in one place, and the code
// of the product uses each.
func TestGlossary_eachWordOnce(t *testing.T) {
	var code strings.Builder
	for _, root := range []string{"cmd", "internal", "pkg"} {
		err := filepath.WalkDir("../../"+root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			code.WriteString(strings.ToLower(string(text)))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{}
	for _, word := range glossary(t) {
		if seen[word] {
			t.Errorf("the glossary explains %q twice", word)
		}
		seen[word] = true
		used := strings.Contains(code.String(), strings.ToLower(word))
		if first, second, two := strings.Cut(word, " "); two { // in a name: handOff
			used = used || strings.Contains(code.String(), strings.ToLower(first+second))
		}
		if !used {
			t.Errorf("the glossary explains %q, which the code does not use", word)
		}
	}
}
