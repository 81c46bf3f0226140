package style

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// noImporter makes the type checker work with one package at a time: names from
// other packages stay unknown, which the scopes of local names do not need.
type noImporter struct{}

func (noImporter) Import(string) (*types.Package, error) { return nil, errors.New("not imported") }

// TestDefer_result checks that a deferred function that sets a variable named like
// a result of the function around it sets the result itself. If it sets an inner
// variable of that name, the caller never sees the value, such as the error of a
// clean-up. golangci-lint's shadow does not look at err, see .golangci.yml.
func TestDefer_result(t *testing.T) {
	checked := 0
	for _, root := range []string{"../../pkg", "../../internal", "../../cmd", "../../hack/kernel"} {
		err := filepath.WalkDir(root, func(dir string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			n, err := checkDefers(t, dir)
			checked += n
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if checked < 5 {
		t.Errorf("only %d assignments in deferred functions were found", checked)
	}
}

// TestDefer_findsInnerError checks that the check itself sees the mistake.
func TestDefer_findsInnerError(t *testing.T) {
	const lost = `package p
func f() (err error) {
	if true {
		_, err := g()
		defer func() { err = g2(err) }()
		return err
	}
	defer func() { err = g2(err) }()
	return nil
}`
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, "lost.go", lost, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	checked, wrong := defers(set, []*ast.File{f})
	if checked != 2 || len(wrong) != 1 || set.Position(wrong[0].Pos()).Line != 5 {
		t.Errorf("%d checked, wrong: %v", checked, wrong)
	}
}

func checkDefers(t *testing.T, dir string) (checked int, err error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return 0, err
	}
	set := token.NewFileSet()
	var files []*ast.File
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return 0, err
		}
		files = append(files, f)
	}
	checked, wrong := defers(set, files)
	for _, id := range wrong {
		t.Errorf("%s: the deferred function sets an inner %s, not the result", set.Position(id.Pos()), id.Name)
	}
	return checked, nil
}

// defers returns how many variables deferred functions set that are named like a
// result of the function around them, and those that are not that result.
func defers(set *token.FileSet, files []*ast.File) (checked int, wrong []*ast.Ident) {
	info := &types.Info{Defs: map[*ast.Ident]types.Object{}, Uses: map[*ast.Ident]types.Object{}}
	conf := types.Config{Importer: noImporter{}, Error: func(error) {}}
	_, _ = conf.Check("p", set, files, info)
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			var signature *ast.FuncType
			var body *ast.BlockStmt
			switch fn := n.(type) {
			case *ast.FuncDecl:
				signature, body = fn.Type, fn.Body
			case *ast.FuncLit:
				signature, body = fn.Type, fn.Body
			}
			results := namesOf(signature)
			if len(results) == 0 || body == nil {
				return true
			}
			for id, deferred := range setInDefers(body) {
				i := slices.IndexFunc(results, func(r *ast.Ident) bool { return r.Name == id.Name })
				if i < 0 || within(info.Uses[id], deferred) {
					continue
				}
				checked++
				if info.Uses[id] != info.Defs[results[i]] {
					wrong = append(wrong, id)
				}
			}
			return true
		})
	}
	return checked, wrong
}

// namesOf returns the named results of a function.
func namesOf(signature *ast.FuncType) (names []*ast.Ident) {
	if signature == nil || signature.Results == nil {
		return nil
	}
	for _, field := range signature.Results.List {
		names = append(names, field.Names...)
	}
	return names
}

// within reports whether a variable is declared inside a function.
func within(o types.Object, fn *ast.FuncLit) bool {
	return o != nil && fn.Pos() <= o.Pos() && o.Pos() < fn.End()
}

// setInDefers returns the variables that the deferred functions of a body set with
// =, each with its function. It skips inner functions that are not deferred: the
// caller looks at each of them too.
func setInDefers(body *ast.BlockStmt) map[*ast.Ident]*ast.FuncLit {
	set := map[*ast.Ident]*ast.FuncLit{}
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false
		case *ast.DeferStmt:
			if lit, is := n.Call.Fun.(*ast.FuncLit); is {
				setIn(lit, set)
			}
			return false
		}
		return true
	})
	return set
}

// setIn adds the variables that a function sets with =.
func setIn(fn *ast.FuncLit, set map[*ast.Ident]*ast.FuncLit) {
	ast.Inspect(fn.Body, func(n ast.Node) bool {
		if a, is := n.(*ast.AssignStmt); is && a.Tok == token.ASSIGN {
			for _, to := range a.Lhs {
				if id, is := to.(*ast.Ident); is {
					set[id] = fn
				}
			}
		}
		return true
	})
}
