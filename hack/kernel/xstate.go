package main

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

//go:embed recipe/xstate.c
var xstateSource []byte

// xstateLibrary returns the path of the library that old kernels need on
// processors with more registers than they know, or "" if this processor has no
// such registers.
func xstateLibrary() (string, error) {
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	if !hasAMX(string(cpuinfo)) {
		return "", nil
	}
	base, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir, err := cached(base, "xstate", func(fresh, _ string) error {
		source := filepath.Join(fresh, "xstate.c")
		if err := os.WriteFile(source, xstateSource, 0o644); err != nil {
			return err
		}
		_, err := output(fresh, "gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", "xstate.so", source)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("building a library that this kernel needs on this processor: %w", err)
	}
	return filepath.Join(dir, "xstate.so"), nil
}

func hasAMX(cpuinfo string) bool { return slices.Contains(strings.Fields(cpuinfo), "amx_tile") }
