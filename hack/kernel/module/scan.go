package module

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Index makes modules.dep and modules.alias for a directory of uncompressed
// modules that depmod has not seen, so that opening it is fast.
func Index(dir string) error {
	t := &Tree{dir, map[string]string{}, map[string][]string{}, map[string]bool{}}
	aliases, err := t.scan()
	if err != nil {
		return err
	}
	if len(t.files) == 0 {
		return fmt.Errorf("no modules in %s", dir)
	}
	var dep []string
	for name, file := range t.files {
		line := file + ":"
		for _, n := range t.depends[name] {
			line += " " + t.files[n]
		}
		dep = append(dep, line+"\n")
	}
	slices.Sort(dep)
	if err := os.WriteFile(filepath.Join(dir, "modules.alias"), []byte(strings.Join(aliases, "")), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(strings.Join(dep, "")), 0o644)
}

// scan reads the modules themselves into t. It returns the lines of
// modules.alias.
func (t *Tree) scan() (aliases []string, err error) {
	err = filepath.WalkDir(t.dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(p) != ".ko" {
			return err
		}
		rel, err := filepath.Rel(t.dir, p)
		if err != nil {
			return err
		}
		info, err := modinfo(p)
		if err != nil {
			return fmt.Errorf("reading module %s: %w", p, err)
		}
		name := nameOf(p)
		t.files[name] = rel
		for _, needs := range info["depends"] {
			for n := range strings.SplitSeq(needs, ",") {
				if n != "" {
					t.depends[name] = append(t.depends[name], normal(n))
				}
			}
		}
		for _, a := range info["alias"] {
			aliases = append(aliases, "alias "+a+" "+name+"\n")
		}
		return nil
	})
	return aliases, err
}

// modinfo returns the fields of a module's .modinfo section.
func modinfo(file string) (map[string][]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no .modinfo section")
	}
	data, err := s.Data()
	if err != nil {
		return nil, err
	}
	info := map[string][]string{}
	for field := range bytes.SplitSeq(data, []byte{0}) {
		if name, value, ok := strings.Cut(string(field), "="); ok {
			info[name] = append(info[name], value)
		}
	}
	return info, nil
}
