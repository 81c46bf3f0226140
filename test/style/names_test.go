package style

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	testName = regexp.MustCompile(`\bTest[A-Z]\w*`)
	testFunc = regexp.MustCompile(`(?m)^func (Test[A-Z]\w*)\(`)
	// declared is a file of the product with the names that follow it: `pool/cut.go` `Pool.take`, `edit.record`
	declared = regexp.MustCompile("`([a-z0-9_-]+/[a-z0-9_/-]+\\.go)`((?:,? `[A-Za-z]\\w*(?:\\.\\w+)?`)+)")
	quoted   = regexp.MustCompile("`([^`]+)`")
	member   = regexp.MustCompile("`([A-Za-z]+)\\.([A-Za-z]+)`")
	inTree   = regexp.MustCompile("`((?:cmd|deploy|docs|examples|hack|internal|pkg|test)/[\\w./*-]+)`")
	// identifier is a name of the code's alone, as `flattenBelow` or `view.forkNeeds`
	identifier = regexp.MustCompile("`(?:\\w+\\.)?([a-z]+[A-Z]\\w*)`")
)

// exampleName stands for any test in the rules for names.
const exampleName = "TestSubject_condition"

// allTests returns the names of all tests of the repository.
func allTests(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, root := range []string{"cmd", "hack", "internal", "pkg", "test"} {
		err := filepath.WalkDir("../../"+root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range testFunc.FindAllStringSubmatch(string(text), -1) {
				all = append(all, m[1])
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(all) < 500 {
		t.Fatalf("only %d tests were found", len(all))
	}
	return all
}

// TestNames_ofTests: a page, the Makefile or a script names no test that is gone.
// In a command the beginning of a test's name is enough.
func TestNames_ofTests(t *testing.T) {
	tests, texts := allTests(t), pages(t)
	for _, path := range []string{"../../Makefile", "../../hack/points", "../../hack/kernels", "../../hack/test"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		texts[path] = string(text)
	}
	for path, text := range texts {
		for line := range strings.SplitSeq(text, "\n") {
			command := !strings.HasSuffix(path, ".md") || strings.HasPrefix(line, "    ")
			for _, name := range testName.FindAllString(line, -1) {
				known := slices.ContainsFunc(tests, func(x string) bool { return x == name || command && strings.HasPrefix(x, name) })
				if !known && name != exampleName {
					t.Errorf("%s names %s, which is not there", path, name)
				}
			}
		}
	}
}

// TestNames_ofDeclarations: where a page names a file of the product and then what is
// declared in it, the declaration is there.
func TestNames_ofDeclarations(t *testing.T) {
	found := 0
	for path, text := range pages(t) {
		for _, m := range declared.FindAllStringSubmatch(text, -1) {
			names := declarations(t, m[1])
			if names == nil {
				t.Errorf("%s names %s, which is not there", path, m[1])
				continue
			}
			for _, q := range quoted.FindAllStringSubmatch(m[2], -1) {
				if strings.HasSuffix(q[1], ".go") {
					continue
				}
				if found++; !slices.Contains(names, q[1]) {
					t.Errorf("%s names %s in %s, which is not there", path, q[1], m[1])
				}
			}
		}
	}
	if found < 30 {
		t.Errorf("only %d declarations were found", found)
	}
}

// TestNames_ofPaths: a path in a page is in the repository.
func TestNames_ofPaths(t *testing.T) {
	for path, text := range pages(t) {
		for _, m := range inTree.FindAllStringSubmatch(text, -1) {
			if found, err := filepath.Glob("../../" + m[1]); err != nil || len(found) == 0 {
				t.Errorf("%s names %s, which is not there", path, m[1])
			}
		}
	}
}

// TestNames_ofIdentifiers: an identifier in the pages for contributors is in the code.
func TestNames_ofIdentifiers(t *testing.T) {
	known := map[string]bool{}
	word := regexp.MustCompile(`\w+`)
	for _, root := range []string{"cmd", "internal", "pkg", "test", "deploy"} {
		err := filepath.WalkDir("../../"+root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !slices.Contains([]string{".go", ".yaml", ".json"}, filepath.Ext(path)) {
				return err
			}
			text, err := os.ReadFile(path)
			for _, w := range word.FindAllString(string(text), -1) {
				known[w] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range pages(t) {
		if !forContributors(path) {
			continue
		}
		for _, m := range identifier.FindAllStringSubmatch(text, -1) {
			if !known[m[1]] {
				t.Errorf("%s names %s, which is not in the code", path, m[1])
			}
		}
	}
}

// TestNames_ofMembers: where a page for contributors names a member of a type or a package,
// such as `Pool.take` or `dm.Resume`, the member is there.
func TestNames_ofMembers(t *testing.T) {
	members := map[string][]string{}
	for _, root := range []string{"internal", "pkg"} {
		err := filepath.WalkDir("../../"+root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			for _, d := range f.Decls {
				addMembers(members, f.Name.Name, d)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range pages(t) {
		if !forContributors(path) {
			continue
		}
		for _, m := range member.FindAllStringSubmatch(text, -1) {
			if fileType := slices.Contains([]string{"go", "mod", "md", "yaml"}, m[2]); !fileType && !slices.Contains(members[m[1]], m[2]) {
				t.Errorf("%s names %s of %s, which is not there", path, m[2], m[1])
			}
		}
	}
}

// addMembers adds what d declares to the members of its package and of its type.
func addMembers(members map[string][]string, pkg string, d ast.Decl) {
	add := func(to, name string) { members[to] = append(members[to], name) }
	switch d := d.(type) {
	case *ast.FuncDecl:
		add(pkg, d.Name.Name)
		if typ, is := strings.CutSuffix(receiver(d), "."); is {
			add(typ, d.Name.Name)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			typ, is := s.(*ast.TypeSpec)
			if !is {
				continue
			}
			add(pkg, typ.Name.Name)
			if fields, is := typ.Type.(*ast.StructType); is {
				for _, field := range fields.Fields.List {
					for _, name := range field.Names {
						add(typ.Name.Name, name.Name)
					}
				}
			}
		}
	}
}

// forContributors reports whether a page explains the code.
func forContributors(path string) bool {
	return strings.Contains(path, "/design/") || strings.HasSuffix(path, "ARCHITECTURE.md") || strings.HasSuffix(path, "CONTRIBUTING.md")
}

// declarations returns what a file declares at its top, methods as Type.method;
// nil if there is no such file.
func declarations(t *testing.T, name string) []string {
	t.Helper()
	for _, root := range []string{"", "pkg/", "internal/"} {
		path := "../../" + root + name
		if _, err := os.Stat(path); err != nil {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		all := []string{}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				all = append(all, receiver(d)+d.Name.Name)
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.TypeSpec:
						all = append(all, s.Name.Name)
					case *ast.ValueSpec:
						for _, n := range s.Names {
							all = append(all, n.Name)
						}
					}
				}
			}
		}
		return all
	}
	return nil
}

// receiver returns the type that a function is a method of, with a dot; "" of others.
func receiver(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return ""
	}
	typ := d.Recv.List[0].Type
	if star, is := typ.(*ast.StarExpr); is {
		typ = star.X
	}
	switch x := typ.(type) {
	case *ast.Ident:
		return x.Name + "."
	case *ast.IndexExpr:
		return x.X.(*ast.Ident).Name + "."
	case *ast.IndexListExpr:
		return x.X.(*ast.Ident).Name + "."
	}
	return ""
}
