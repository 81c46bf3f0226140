package main

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// umlKernel describes a User-mode Linux and where it comes from. The kernel of
// the installed package user-mode-linux has no suite.
type umlKernel struct {
	name    string
	suite   string // of Debian
	version string // of the package that the tests were run with
	xstate  bool   // needs recipe/xstate.c on some processors
	source  string // the source package that the kernel is built from; "" if it is not built here
	maxCPUs int    // 0 if it can have only one
}

// umlKernels has all of them by their names, which DMSNAP_KERNEL takes.
var umlKernels = map[string]umlKernel{
	"uml":      {name: "uml", xstate: true},
	"uml-6.12": {name: "uml-6.12", suite: "trixie", version: "6.12um1+b22", xstate: true},
	"uml-7.2":  {name: "uml-7.2", suite: "sid", version: "7.2um1"},
	umlSMP: {name: umlSMP, suite: "trixie-backports", version: "7.3.4-1~bpo13+1", source: "linux-source-7.3",
		maxCPUs: 4}, // NR_CPUS in recipe/smp.config
}

// umlSMP is built here, because Debian's kernels support only one processor.
const umlSMP = "uml-smp"

const (
	umlPackage = "user-mode-linux"
	umlBinary  = "linux.uml"
	umlModules = "/usr/lib/uml/modules" // has a directory for each release of the kernel
)

// kernelNames lists the values that DMSNAP_KERNEL may have.
func kernelNames() string {
	names := append(append(slices.Sorted(maps.Keys(umlKernels)), "host"), slices.Sorted(maps.Keys(machines))...)
	return strings.Join(names, ", ") + " or auto"
}

// umlFiles are the files of a kernel that can be started.
type umlFiles struct {
	kernel  string // the program
	modules string // as umlModules
}

// find returns the kernel's files. It first fetches or builds them if the cache
// does not have them.
func (k umlKernel) find() (umlFiles, error) {
	if k.suite == "" {
		kernel, err := exec.LookPath(umlBinary)
		if err != nil {
			return umlFiles{}, fmt.Errorf("%w: install the Debian package %s (hack/deps.sh)", err, umlPackage)
		}
		return umlFiles{kernel, umlModules}, nil
	}
	base, err := cacheDir()
	if err != nil {
		return umlFiles{}, err
	}
	fill := k.fetch
	if k.source != "" {
		fill = k.build
	}
	dir, err := cached(base, k.name, fill)
	if err != nil {
		return umlFiles{}, fmt.Errorf("making the kernel %s: %w", k.name, err)
	}
	return cachedFiles(dir), nil
}

// words returns the words of the kernel's command line for this number of
// processors.
func (k umlKernel) words(cpus int) ([]string, error) {
	if k.maxCPUs == 0 {
		return nil, nil // it has only one processor
	}
	if cpus > k.maxCPUs {
		return nil, fmt.Errorf("%d processors: %s has at most %d", cpus, k.name, k.maxCPUs)
	}
	return []string{
		"ncpus=" + strconv.Itoa(cpus), "seccomp=on", // with ptrace it has only one processor
		// These drivers are built in, and by default would make disks and take
		// memory for them. A test that wants a SCSI disk writes 0 to fake_rw
		// and 1 to add_host of its driver.
		"scsi_debug.add_host=0", "scsi_debug.fake_rw=1", "scsi_debug.dev_size_mb=128", "null_blk.nr_devices=0",
	}, nil
}

func cachedFiles(dir string) umlFiles {
	return umlFiles{filepath.Join(dir, umlBinary), filepath.Join(dir, "modules")}
}

// fetch unpacks the kernel's package with the C library of its suite, which
// may be newer than the machine's.
func (k umlKernel) fetch(fresh, dir string) error {
	fmt.Fprintf(os.Stderr, "testkernel: fetching the Debian package %s of %s into %s, once\n", umlPackage, k.suite, dir)
	if err := needPatchelf(); err != nil {
		return err
	}
	work := filepath.Join(fresh, "work")
	a, err := newApt(k.suite, "amd64", work)
	if err != nil {
		return err
	}
	tree, libc := filepath.Join(work, "tree"), filepath.Join(fresh, "libc")
	if err := a.unpack(umlPackage, k.version, tree); err != nil {
		return err
	}
	if err := a.unpack("libc6", "", libc); err != nil {
		return err
	}
	files := cachedFiles(fresh)
	if err := os.Rename(filepath.Join(tree, "usr/bin", umlBinary), files.kernel); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(tree, umlModules), files.modules); err != nil {
		return err
	}
	if err := useLibrary(files.kernel, libc, filepath.Join(dir, "libc")); err != nil {
		return err
	}
	return os.RemoveAll(work)
}

func needPatchelf() error {
	if _, err := exec.LookPath("patchelf"); err != nil {
		return fmt.Errorf("%w: install the Debian package patchelf (hack/deps.sh --kernels)", err)
	}
	return nil
}

// useLibrary makes the program, and the libraries that it loads, use the libraries
// that are unpacked in libc and will be moved to final. The C library is one of them.
func useLibrary(program, libc, final string) error {
	const loader = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
	if _, err := os.Stat(filepath.Join(libc, loader)); err != nil {
		return fmt.Errorf("the package libc6 has an unknown layout: %w", err)
	}
	_, err := output("", "patchelf", "--set-interpreter", filepath.Join(final, loader),
		"--force-rpath", "--set-rpath", filepath.Dir(filepath.Join(final, loader)), program)
	return err
}
