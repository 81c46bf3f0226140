// Package module finds and loads kernel modules, in the order of their
// dependencies, on a machine that need not have kmod.
package module

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Tree has the modules of one kernel, from a directory like /lib/modules/6.1.0.
type Tree struct {
	dir     string
	files   map[string]string   // name to path below dir
	depends map[string][]string // name to names; at least the direct dependencies
	builtin map[string]bool
}

// Open reads a module directory. It reads the lists that depmod makes, or the
// modules themselves if there is no modules.dep.
func Open(dir string) (*Tree, error) {
	t := &Tree{dir, map[string]string{}, map[string][]string{}, map[string]bool{}}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, f := range strings.Fields(string(builtin)) {
		t.builtin[nameOf(f)] = true
	}
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if errors.Is(err, fs.ErrNotExist) {
		_, err := t.scan()
		return t, err
	}
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(dep)) {
		file, needs, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		t.files[nameOf(file)] = file
		for _, n := range strings.Fields(needs) {
			t.depends[nameOf(file)] = append(t.depends[nameOf(file)], nameOf(n))
		}
	}
	return t, nil
}

// Order returns the files to load for the named modules, each after the modules
// that it needs. Built-in modules need no file.
func (t *Tree) Order(names ...string) ([]string, error) {
	var order []string
	state := map[string]int{} // 1: being visited, 2: done
	var visit func(name, wanted string) error
	visit = func(name, wanted string) error {
		if state[name] == 2 || t.builtin[name] {
			return nil
		}
		if state[name] == 1 {
			return fmt.Errorf("module %s: its dependencies in %s form a cycle", wanted, t.dir)
		}
		file, ok := t.files[name]
		if !ok {
			return fmt.Errorf("module %s (needed for %s) is not in %s", name, wanted, t.dir)
		}
		state[name] = 1
		for _, n := range t.depends[name] {
			if err := visit(n, wanted); err != nil {
				return err
			}
		}
		state[name] = 2
		order = append(order, filepath.Join(t.dir, file))
		return nil
	}
	for _, n := range names {
		if err := visit(normal(n), n); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// Load loads the named modules into the running kernel.
func (t *Tree) Load(names ...string) error {
	files, err := t.Order(names...)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := insert(f); err != nil {
			return fmt.Errorf("loading module %s: %w", f, err)
		}
	}
	return nil
}

// LoadAlias loads the module that a request of the kernel names: the module of
// that name, or all modules with a matching pattern in modules.alias. It
// succeeds if one of these can be loaded.
func (t *Tree) LoadAlias(alias string) error {
	if n := normal(alias); t.files[n] != "" || t.builtin[n] {
		return t.Load(n)
	}
	list, err := os.ReadFile(filepath.Join(t.dir, "modules.alias"))
	if err != nil {
		return err
	}
	loaded := false
	err = fmt.Errorf("no module for %q in %s", alias, t.dir)
	for line := range strings.Lines(string(list)) {
		w := strings.Fields(line)
		if len(w) != 3 || w[0] != "alias" {
			continue
		}
		if ok, e := path.Match(normal(w[1]), normal(alias)); e == nil && ok {
			if e := t.Load(w[2]); e != nil {
				err = e
			} else {
				loaded = true
			}
		}
	}
	if loaded {
		return nil
	}
	return err
}

func insert(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if filepath.Ext(file) != ".ko" {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	err = unix.FinitModule(int(f.Fd()), "", flags)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func nameOf(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return normal(name)
}

// normal replaces - by _, because the kernel treats both alike in the name of a
// module.
func normal(name string) string { return strings.ReplaceAll(name, "-", "_") }
