package style

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	tagKey    = regexp.MustCompile(`(?m)^\ttag[A-Z]\w* += "(\w+)"`)
	reasonKey = regexp.MustCompile(`"([A-Z][a-zA-Z]+)"`)
	firstCell = regexp.MustCompile(`(?m)^\| ([^\n]+?) \| `)
)

// cells returns the first cells of all tables of a page.
func cells(t *testing.T, page string) string {
	t.Helper()
	var all strings.Builder
	for _, m := range firstCell.FindAllStringSubmatch(read(t, page), -1) {
		all.WriteString(m[1] + "\n")
	}
	return all.String()
}

// read returns the text of a file that may lie in one of several folders.
func read(t *testing.T, pattern string) string {
	t.Helper()
	paths, err := filepath.Glob("../../" + pattern)
	if err != nil || len(paths) != 1 {
		t.Fatalf("%s: %d files, %v", pattern, len(paths), err)
	}
	text, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestTables_tags: the table of tags in docs/design/metadata.md has every key.
func TestTables_tags(t *testing.T) {
	table, keys := cells(t, "docs/design/metadata.md"), tagKey.FindAllStringSubmatch(read(t, "internal/*/tags.go"), -1)
	if len(keys) < 20 {
		t.Fatalf("only %d keys were found", len(keys))
	}
	for _, m := range keys {
		if !strings.Contains(table, "`"+m[1]+"`") && !strings.Contains(table, "`"+m[1]+"=") {
			t.Errorf("docs/design/metadata.md does not explain the tag %s", m[1])
		}
	}
}

// TestTables_reasons: the table of events in docs/design/controller.md has every reason.
func TestTables_reasons(t *testing.T) {
	_, list, _ := strings.Cut(read(t, "internal/reports/reasons.go"), "var reasons")
	list, _, _ = strings.Cut(list, "\n}")
	table, keys := cells(t, "docs/design/controller.md"), reasonKey.FindAllStringSubmatch(list, -1)
	if len(keys) < 20 {
		t.Fatalf("only %d reasons were found", len(keys))
	}
	for _, m := range keys {
		if !strings.Contains(table, "`"+m[1]+"`") {
			t.Errorf("docs/design/controller.md does not explain the reason %s", m[1])
		}
	}
}
