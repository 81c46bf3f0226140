package style

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	marked  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	source  = regexp.MustCompile("`(?:pkg/|internal/)?([a-z0-9]+/[a-z0-9_*]+\\.go)`")
	inDoc   = regexp.MustCompile(`[a-z_*]+\.go\b`)
)

// pages returns the project's pages with their texts, by their paths.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", "deploy/helm/*/*.md", "pkg/*/README.md"} {
		paths, err := filepath.Glob("../../" + pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			all[path] = string(text)
		}
	}
	if len(all) < 20 {
		t.Fatalf("only %d pages were found", len(all))
	}
	return all
}

// anchors returns those of a page's headings, as GitHub makes them.
func anchors(text string) []string {
	var all []string
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		all = append(all, strings.ReplaceAll(marked.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
	}
	return all
}

// TestPages_links: a link of a page leads to a file, and to a heading of that.
func TestPages_links(t *testing.T) {
	all := pages(t)
	for path, text := range all {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			to, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(to, ":") {
				continue
			}
			target := path
			if to != "" {
				target = filepath.Join(filepath.Dir(path), to)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", path, err)
			} else if page, is := all[target]; is && anchor != "" && !slices.Contains(anchors(page), anchor) {
				t.Errorf("%s: %s has no heading %s", path, target, anchor)
			}
		}
	}
}

// TestPages_sources: a page names no file of the product that is gone.
func TestPages_sources(t *testing.T) {
	for path, text := range pages(t) {
		for _, m := range source.FindAllStringSubmatch(text, -1) {
			libraries, _ := filepath.Glob("../../pkg/" + m[1])
			own, _ := filepath.Glob("../../internal/" + m[1])
			if len(libraries)+len(own) == 0 {
				t.Errorf("%s names %s, which is not there", path, m[1])
			}
		}
	}
}

// TestMap: the package comments of pool and catalog name each of their files, and no
// other one.
func TestMap(t *testing.T) {
	for _, dir := range []string{"internal/pool", "internal/catalog"} {
		text, err := os.ReadFile("../../" + dir + "/doc.go")
		if err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob("../../" + dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		patterns := inDoc.FindAllString(string(text), -1)
		used := map[string]bool{"doc.go": true}
		for _, file := range files {
			name, named := filepath.Base(file), false
			if strings.HasSuffix(name, "_test.go") || name == "doc.go" {
				continue
			}
			for _, p := range patterns {
				if is, err := filepath.Match(p, name); err == nil && is {
					named, used[p] = true, true
				}
			}
			if !named {
				t.Errorf("%s/doc.go does not name %s", dir, name)
			}
		}
		for _, p := range patterns {
			if !used[p] {
				t.Errorf("%s/doc.go names %s, which is not there", dir, p)
			}
		}
	}
}
