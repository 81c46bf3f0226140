package style

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	uses   = regexp.MustCompile(`^\s*(?:- )?uses:`)
	pinned = regexp.MustCompile(`^\s*(?:- )?uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$`)
	phony  = regexp.MustCompile(`(?m)^\.PHONY: (.*)$`)
	target = regexp.MustCompile(`(?m)^([a-z0-9-]+):.*## \S`)
)

// TestWorkflows_actionsPinned checks that a workflow names each action by the hash
// of a commit, with the version in a comment: a tag of an action can be moved.
func TestWorkflows_actionsPinned(t *testing.T) {
	paths, err := filepath.Glob("../../.github/workflows/*.yml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no workflows: %v", err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSuffix(line, "\n"); uses.MatchString(line) && !pinned.MatchString(line) {
				t.Errorf("%s: %q is not of the form owner/name@HASH # vVERSION", path, strings.TrimSpace(line))
			}
		}
	}
}

// TestMakefile_help checks that make help says what each target does.
func TestMakefile_help(t *testing.T) {
	text, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	explained := map[string]bool{}
	for _, m := range target.FindAllStringSubmatch(string(text), -1) {
		explained[m[1]] = true
	}
	m := phony.FindStringSubmatch(string(text))
	if m == nil {
		t.Fatal("the Makefile has no .PHONY")
	}
	for name := range strings.FieldsSeq(m[1]) {
		if !explained[name] {
			t.Errorf("the target %s has no text after ##", name)
		}
		delete(explained, name)
	}
	for name := range explained {
		t.Errorf("the target %s is not in .PHONY", name)
	}
}
