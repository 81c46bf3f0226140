package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// runDir is the directory of one run, for its disks, its configuration and
// the kernel's sockets. The guard removes it.
type runDir struct{ path string }

func newRunDir() (*runDir, error) {
	// /tmp is often in memory, and then too small for disks.
	base := os.Getenv("TMPDIR")
	if base == "" {
		base = "/var/tmp"
	}
	base, err := filepath.Abs(base)
	if err != nil {
		return nil, err
	}
	if strings.ContainsAny(base, " \t\n\",:") {
		return nil, fmt.Errorf("TMPDIR %q has blanks, quotes, commas or colons, which a kernel's command line cannot have; set another TMPDIR", base)
	}
	path, err := os.MkdirTemp(base, "dmsnap-kernel-")
	if err != nil {
		return nil, err
	}
	return &runDir{path}, nil
}

func (d *runDir) file(name string) string { return filepath.Join(d.path, name) }

func (d *runDir) remove() { os.RemoveAll(d.path) }
