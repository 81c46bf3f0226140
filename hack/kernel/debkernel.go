package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/hack/kernel/module"
)

// qemuPackage is the kernel for QEMU. The smaller linux-image-cloud-amd64 has
// no 9p, by which the guest sees the host's file system.
const qemuPackage = "linux-image-amd64"

// debKernel is an unpacked Debian kernel.
type debKernel struct {
	image   string // the compressed kernel
	modules string // the directory that has the module tree
	release string
}

// fetchKernel returns the kernel from the cache, into which it downloads it
// when it is not there; nothing is installed.
func fetchKernel() (debKernel, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return debKernel{}, err
	}
	base = filepath.Join(base, "csi-dmsnap")
	if err := os.MkdirAll(base, 0o755); err != nil {
		return debKernel{}, err
	}
	lock, err := os.Open(base)
	if err != nil {
		return debKernel{}, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return debKernel{}, fmt.Errorf("locking %s: %w", base, err)
	}
	dir := filepath.Join(base, qemuPackage)
	if _, err := os.Stat(dir); err != nil {
		if err := downloadKernel(dir); err != nil {
			return debKernel{}, fmt.Errorf("fetching the Debian package %s: %w", qemuPackage, err)
		}
	}
	images, _ := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*"))
	if len(images) != 1 {
		return debKernel{}, fmt.Errorf("%s: %d kernels instead of one; remove the directory to fetch it again", dir, len(images))
	}
	return debKernel{
		image:   images[0],
		modules: filepath.Join(dir, "lib/modules"),
		release: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-"),
	}, nil
}

// downloadKernel unpacks the package that the metapackage depends on into dir.
func downloadKernel(dir string) error {
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
		return errors.New("apt does not know it: this must be Debian, and apt-get update must have run")
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if _, err := output(tmp, "apt-get", "download", name); err != nil {
		return err
	}
	debs, _ := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if len(debs) != 1 {
		return fmt.Errorf("apt-get download %s: %d files", name, len(debs))
	}
	tree := filepath.Join(tmp, "tree")
	if _, err := output(tmp, "dpkg-deb", "-x", debs[0], tree); err != nil {
		return err
	}
	roots, _ := filepath.Glob(filepath.Join(tree, "lib/modules/*"))
	for _, root := range roots {
		if err := module.Index(root); err != nil {
			return err
		}
	}
	return os.Rename(tree, dir)
}

func output(dir, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
