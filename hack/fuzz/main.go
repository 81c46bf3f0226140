// Fuzz runs every fuzzer of the module, one after the other, and keeps a small corpus.
//
//	go run ./hack/fuzz [-time 1m] [-only FuzzName]
//
// After a fuzzer has run, fuzz adds those inputs to testdata/fuzz that reach code which
// neither the inputs there nor smaller ones reach, and prints how long the fuzzer ran. It
// deletes no input: one that once made a test fail may reach no code of its own. It exits
// with 1 if a fuzzer found a failure; Go has then written the input to testdata/fuzz.
package main

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	largest = 8 << 10 // bytes of an input that is kept
	most    = 24      // inputs of a fuzzer up to which inputs are added
)

// fuzzer is a fuzz test.
type fuzzer struct{ dir, name string }

func main() {
	length := flag.Duration("time", time.Minute, "how long each fuzzer runs")
	only := flag.String("only", "", "run only the fuzzers whose names match this regular expression")
	flag.Parse()
	all, err := fuzzers(".")
	if err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		os.Exit(1)
	}
	wanted, err := regexp.Compile(*only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "fuzz: -only:", err)
		os.Exit(2)
	}
	all = slices.DeleteFunc(all, func(f fuzzer) bool { return !wanted.MatchString(f.name) })
	if len(all) == 0 {
		fmt.Fprintf(os.Stderr, "fuzz: no fuzzer matches %q; git grep 'func Fuzz' shows the names\n", *only)
		os.Exit(2)
	}
	failed := false
	for _, f := range all {
		out, err := f.run("test", "-run=^$", "-fuzz=^"+f.name+"$", "-fuzztime="+length.String(), "-parallel=1", ".")
		if err == nil {
			err = f.keep()
		}
		if err != nil {
			failed = true
			fmt.Printf("%s in %s: %v\n%s\n", f.name, f.dir, err, out)
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		fmt.Printf("%-24s %-22s %s\n", f.name, f.dir, lines[max(0, len(lines)-3)])
	}
	if failed {
		os.Exit(1)
	}
}

var declaration = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)

// fuzzers finds the fuzzers below a directory.
func fuzzers(root string) (all []fuzzer, err error) {
	err = filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range declaration.FindAllSubmatch(text, -1) {
			all = append(all, fuzzer{filepath.Dir(path), string(m[1])})
		}
		return err
	})
	return all, err
}

// run runs the go command in the fuzzer's package, on one processor.
func (f fuzzer) run(args ...string) ([]byte, error) {
	c := exec.Command("go", args...)
	c.Dir, c.Env = f.dir, append(os.Environ(), "GOMAXPROCS=1")
	return c.CombinedOutput()
}

// input is one input of a fuzzer, in Go's format.
type input struct {
	path    string
	content []byte
}

// keep chooses inputs from Go's cache, and adds them to testdata/fuzz.
func (f fuzzer) keep() error {
	cache, err := f.run("env", "GOCACHE")
	if err != nil {
		return err
	}
	pkg, err := f.run("list", ".")
	if err != nil {
		return err
	}
	kept := filepath.Join(f.dir, "testdata", "fuzz", f.name)
	old, err := inputsIn(kept)
	if err != nil {
		return err
	}
	found, err := inputsIn(filepath.Join(strings.TrimSpace(string(cache)), "fuzz", strings.TrimSpace(string(pkg)), f.name))
	if err != nil {
		return err
	}
	found = slices.DeleteFunc(found, func(i input) bool { return len(i.content) > largest })
	chosen, err := f.choose(old, found)
	if err != nil || len(chosen) == 0 {
		return err
	}
	if err := os.MkdirAll(kept, 0o755); err != nil {
		return err
	}
	for _, i := range chosen {
		if err := os.WriteFile(filepath.Join(kept, filepath.Base(i.path)), i.content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// inputsIn returns the inputs in a directory, the smallest first; none if there is no
// directory.
func inputsIn(dir string) (inputs []input, err error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		inputs = append(inputs, input{path, content})
	}
	slices.SortFunc(inputs, func(a, b input) int {
		return cmp.Or(cmp.Compare(len(a.content), len(b.content)), bytes.Compare(a.content, b.content))
	})
	return inputs, nil
}

// choose returns the found inputs that reach code which neither the fuzzer's own seeds,
// nor the old inputs, nor the found inputs before them reach. The test runs in a
// directory with the package's other test data.
func (f fuzzer) choose(old, found []input) (chosen []input, err error) {
	work, err := os.MkdirTemp("", "fuzz")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	binary, data := filepath.Join(work, "test"), filepath.Join(work, "testdata", "fuzz", f.name)
	if out, err := f.run("test", "-c", "-cover", "-o", binary, "."); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	if err := os.MkdirAll(data, 0o755); err != nil {
		return nil, err
	}
	others, err := filepath.Glob(filepath.Join(f.dir, "testdata", "*"))
	if err != nil {
		return nil, err
	}
	for _, path := range others {
		if filepath.Base(path) == "fuzz" {
			continue
		}
		absolute, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		if err := os.Symlink(absolute, filepath.Join(work, "testdata", filepath.Base(path))); err != nil {
			return nil, err
		}
	}
	reached := map[string]bool{}
	if _, err := grow(reached, work, binary, f.name); err != nil {
		return nil, err
	}
	for n, i := range slices.Concat(old, found) {
		if err := os.WriteFile(filepath.Join(data, "input"), i.content, 0o644); err != nil {
			return nil, err
		}
		more, err := grow(reached, work, binary, f.name+"/input")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", i.path, err)
		}
		if more && n >= len(old) && len(old)+len(chosen) < most {
			chosen = append(chosen, i)
		}
	}
	return chosen, nil
}

// grow adds to reached what a test reaches, and reports whether anything is new.
func grow(reached map[string]bool, work, binary, test string) (more bool, err error) {
	profile := filepath.Join(work, "profile")
	c := exec.Command(binary, "-test.run=^"+strings.ReplaceAll(test, "/", "$/^")+"$", "-test.coverprofile="+profile)
	c.Dir = work
	if out, err := c.CombinedOutput(); err != nil {
		return false, fmt.Errorf("%w: %s", err, out)
	}
	text, err := os.ReadFile(profile)
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(text)) {
		if block, is := strings.CutSuffix(strings.TrimSpace(line), " 1"); is && !reached[block] {
			reached[block], more = true, true
		}
	}
	return more, nil
}
