// Package style checks rules that the compiler and the linters do not know.
package style

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The most lines of a file, and of a function with its signature and closing brace.
const (
	fileLines     = 400
	functionLines = 60
)

// TestSize_filesAndFunctions: a file or a function of the product that is too long does several
// things and is to be cut. Tests and generated code may be longer.
func TestSize_filesAndFunctions(t *testing.T) {
	files := 0
	for _, root := range []string{"../../pkg", "../../internal", "../../cmd"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			files++
			return checkSize(t, path)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files < 100 {
		t.Errorf("only %d files were found", files)
	}
}

func checkSize(t *testing.T, path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, path, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	if ast.IsGenerated(f) {
		return nil
	}
	if n := bytes.Count(text, []byte("\n")); n > fileLines {
		t.Errorf("%s has %d lines, %d are allowed", path, n, fileLines)
	}
	for _, d := range f.Decls {
		fn, is := d.(*ast.FuncDecl)
		if !is {
			continue
		}
		if n := set.Position(fn.End()).Line - set.Position(fn.Pos()).Line + 1; n > functionLines {
			t.Errorf("%s: function %s has %d lines, %d are allowed", set.Position(fn.Pos()), fn.Name.Name, n, functionLines)
		}
	}
	return nil
}
