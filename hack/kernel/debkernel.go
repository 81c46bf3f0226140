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

// qemuPackage is the package of QEMU's kernel. The smaller
// linux-image-cloud-amd64 lacks 9p, by which the guest sees the host's file
// system.
const qemuPackage = "linux-image-amd64"

// debKernel is an unpacked Debian kernel.
type debKernel struct {
	image   string // the compressed kernel
	modules string // the directory with a module tree for each release
	release string
}

// fetchKernel returns the kernel from the cache, and downloads it first if it
// is not there. It installs nothing.
func fetchKernel() (debKernel, error) {
	base, err := cacheDir()
	if err != nil {
		return debKernel{}, err
	}
	dir, err := cached(base, qemuPackage, downloadKernel)
	if err != nil {
		return debKernel{}, fmt.Errorf("fetching the Debian package %s: %w", qemuPackage, err)
	}
	images, _ := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*"))
	if len(images) != 1 {
		return debKernel{}, fmt.Errorf("%s has %d kernels instead of one; delete the directory to fetch the kernel again", dir, len(images))
	}
	return debKernel{
		image:   images[0],
		modules: filepath.Join(dir, "lib/modules"),
		release: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-"),
	}, nil
}

// downloadKernel unpacks the package that the metapackage depends on into fresh.
func downloadKernel(fresh, dir string) error {
	fmt.Fprintf(os.Stderr, "testkernel: fetching the Debian package %s into %s, once\n", qemuPackage, dir)
	depends, err := output("", "apt-cache", "depends", "--no-recommends", "--no-suggests", qemuPackage)
	if err != nil {
		return err
	}
	var name string
	for line := range strings.Lines(depends) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			name = "linux-image-" + n
		}
	}
	if name == "" {
		return errors.New("apt does not know the package; on Debian, run apt-get update")
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
