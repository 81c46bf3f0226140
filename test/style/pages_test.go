package style

import (
	"regexp"
	"strings"
	"testing"
)

// TestPages_readers: a page of the design, and each page for contributors, says at its
// top who should read it.
func TestPages_readers(t *testing.T) {
	opening := regexp.MustCompile(`^# [^\n]+\n\nFor (engineers|contributors|those who)`)
	found := 0
	for path, text := range pages(t) {
		of := strings.Contains(path, "/docs/design/")
		for _, name := range []string{"/ARCHITECTURE.md", "/CONTRIBUTING.md", "/docs/tests.md"} {
			of = of || strings.HasSuffix(path, name)
		}
		if !of {
			continue
		}
		if found++; !opening.MatchString(text) {
			t.Errorf("%s does not say at its top for whom it is", path)
		}
	}
	if found < 10 {
		t.Errorf("only %d pages were found", found)
	}
}
