package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/csi-dmsnap/csi-dmsnap/hack/kernel/module"
)

// debKernel is an unpacked Debian kernel.
type debKernel struct {
	image   string // the compressed kernel
	modules string // the directory with a module tree for each release
	release string
	// userland is a directory with programs that lies over the host's file system in
	// the guest; "" if the guest runs the host's programs.
	userland string
}

// fetchKernel returns the kernel from the cache, and downloads it first if it
// is not there. It installs nothing.
func fetchKernel(m machine) (debKernel, error) {
	base, err := cacheDir()
	if err != nil {
		return debKernel{}, err
	}
	fill := m.download
	if m.suite == "" {
		fill = func(fresh, dir string) error { return downloadKernel(m.kernelPackage(), fresh, dir) }
	}
	dir, err := cached(base, m.kernelPackage(), fill)
	if err != nil {
		return debKernel{}, fmt.Errorf("fetching the Debian package %s: %w", m.kernelPackage(), err)
	}
	images, _ := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*"))
	if len(images) != 1 {
		return debKernel{}, fmt.Errorf("%s has %d kernels instead of one; delete the directory to fetch the kernel again", dir, len(images))
	}
	k := debKernel{
		image:   images[0],
		modules: filepath.Join(dir, "lib/modules"),
		release: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-"),
	}
	if m.suite != "" {
		k.userland = userland(dir)
	}
	return k, nil
}

// imageOf returns the package of a kernel that a metapackage depends on.
func imageOf(depends string) (string, error) {
	for line := range strings.Lines(depends) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			return "linux-image-" + n, nil
		}
	}
	return "", errors.New("apt does not know the package; on Debian, run apt-get update")
}

// downloadKernel unpacks the package that the metapackage depends on into fresh. It
// uses the machine's package lists.
func downloadKernel(meta, fresh, dir string) error {
	fmt.Fprintf(os.Stderr, "testkernel: fetching the Debian package %s into %s, once\n", meta, dir)
	depends, err := output("", "apt-cache", "depends", "--no-recommends", "--no-suggests", meta)
	if err != nil {
		return err
	}
	name, err := imageOf(depends)
	if err != nil {
		return err
	}
	if _, err := output(fresh, "apt-get", "download", name); err != nil {
		return err
	}
	debs, _ := filepath.Glob(filepath.Join(fresh, "*.deb"))
	if len(debs) != 1 {
		return fmt.Errorf("apt-get download %s: %d files", name, len(debs))
	}
	if _, err := output(fresh, "dpkg-deb", "-x", debs[0], fresh); err != nil {
		return err
	}
	if err := os.Remove(debs[0]); err != nil {
		return err
	}
	roots, _ := filepath.Glob(filepath.Join(fresh, "lib/modules/*"))
	for _, root := range roots {
		if err := module.Index(root); err != nil {
			return err
		}
	}
	return nil
}

// output runs a command and returns what it prints. The kernel ends the command
// if this process ends.
func output(dir, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
