package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// lvm2Versions are the versions of the package lvm2 with which the tests were run, by
// Debian's suite.
var lvm2Versions = map[string]string{"trixie": "2.03.31-2"}

// findLVM2 returns the directory of LVM2's commands of a Debian suite, with their own
// libraries. It first fetches them if the cache does not have them, and installs
// nothing.
func findLVM2(suite string) (string, error) {
	version, ok := lvm2Versions[suite]
	if !ok {
		return "", fmt.Errorf("unknown suite %q of lvm2: must be trixie, or empty for the installed lvm2", suite)
	}
	base, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir, err := cached(base, "lvm2-"+suite, func(fresh, dir string) error { return fetchLVM2(suite, version, fresh, dir) })
	if err != nil {
		return "", fmt.Errorf("fetching lvm2 of %s: %w", suite, err)
	}
	return filepath.Join(dir, "usr/sbin"), nil
}

// fetchLVM2 unpacks the package with everything that it depends on into fresh.
func fetchLVM2(suite, version, fresh, dir string) error {
	fmt.Fprintf(os.Stderr, "testkernel: fetching the Debian package lvm2 of %s into %s, once\n", suite, dir)
	if err := needPatchelf(); err != nil {
		return err
	}
	work := filepath.Join(fresh, "work")
	a, err := newApt(suite, "amd64", work)
	if err != nil {
		return err
	}
	packages, err := a.closure("lvm2")
	if err != nil {
		return err
	}
	for _, name := range packages {
		wanted := ""
		if name == "lvm2" {
			wanted = version
		}
		if err := a.unpack(name, wanted, fresh); err != nil {
			return err
		}
	}
	for _, program := range []string{"lvm", "dmsetup"} { // the other commands are links to these
		if err := useLibrary(filepath.Join(fresh, "usr/sbin", program), fresh, dir); err != nil {
			return err
		}
	}
	return os.RemoveAll(work)
}

// closure returns the packages and all packages that they depend on.
func (a *apt) closure(wanted ...string) ([]string, error) {
	plan, err := output(a.dir, "apt-get", append(append(a.options, "--simulate", "--no-install-recommends", "install"), wanted...)...)
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(plan) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Inst" {
			names = append(names, f[1])
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no package %v", wanted)
	}
	return names, nil
}
