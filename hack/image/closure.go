package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"maps"
	"slices"
)

// closure returns the paths of the tools, the extras, and everything that they
// are linked with, directly or indirectly. It looks for libraries below
// /usr/lib/ABI, as Debian's loader does by default.
func (t tree) closure(abi string) ([]string, error) {
	chosen := map[string]bool{}
	libraries := "usr/lib/" + abi + "/"
	next := slices.Concat(tools, extras)
	for _, l := range loaded {
		next = append(next, libraries+l)
	}
	for len(next) > 0 {
		name := next[0]
		next = next[1:]
		if chosen[name] {
			continue
		}
		target, links, err := t.follow(name)
		if err != nil {
			return nil, err
		}
		for _, l := range append(links, target) {
			chosen[l] = true
		}
		needed, interpreter, err := linkedWith(t[target].content)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", target, err)
		}
		for _, l := range needed {
			if path := libraries + l; t.has(path) {
				next = append(next, path)
			} else if path := merged("lib64/" + l); t.has(path) { // the loader itself
				next = append(next, path)
			} else if path := merged("lib/" + l); t.has(path) { // the loader on arm64
				next = append(next, path)
			} else {
				return nil, fmt.Errorf("%s needs %s, which no package has", target, l)
			}
		}
		if interpreter != "" {
			next = append(next, merged(interpreter))
		}
	}
	return slices.Sorted(maps.Keys(chosen)), nil
}

func (t tree) has(name string) bool {
	_, ok := t[name]
	return ok
}

// linkedWith returns the libraries that an ELF file names, and its loader. It
// returns nothing for other files.
func linkedWith(content []byte) (needed []string, interpreter string, err error) {
	if !bytes.HasPrefix(content, []byte(elf.ELFMAG)) {
		return nil, "", nil
	}
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	if needed, err = f.ImportedLibraries(); err != nil {
		return nil, "", err
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		text := make([]byte, p.Filesz)
		if _, err := p.ReadAt(text, 0); err != nil {
			return nil, "", err
		}
		interpreter = string(bytes.TrimRight(text, "\x00"))
	}
	return needed, interpreter, nil
}
