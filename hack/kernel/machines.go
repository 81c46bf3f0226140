package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/csi-dmsnap/csi-dmsnap/hack/kernel/module"
)

// machine is a computer that QEMU simulates.
type machine struct {
	arch    string // as Go and Debian name it
	program string
	deb     string // Debian's package of the program
	args    []string
	console string
	// suite is Debian's release of the kernel and of the programs that the guest needs
	// because the host's are for another architecture. It is empty for a machine that
	// runs the host's programs; the kernel is then that of the host's release.
	suite string
}

// machines has all of them by their names, which DMSNAP_KERNEL takes.
var machines = map[string]machine{
	qemu: {arch: "amd64", program: "qemu-system-x86_64", deb: "qemu-system-x86", console: "ttyS0"},
	"qemu-arm64": {
		arch: "arm64", program: "qemu-system-aarch64", deb: "qemu-system-arm", console: "ttyAMA0", suite: "bookworm",
		// The pointer authentication that -cpu max simulates by default is slow.
		args: []string{"-machine", "virt", "-cpu", "cortex-a72"},
	},
}

// qemu is the machine that runs the host's programs.
const qemu = "qemu"

// kernelPackage returns Debian's package of the kernel. The smaller
// linux-image-cloud-… lacks 9p, by which the guest sees the host's file system.
func (m machine) kernelPackage() string { return "linux-image-" + m.arch }

// guestPrograms are packages that tests of other architectures need.
var guestPrograms = []string{"mount", "util-linux", "e2fsprogs", "dmsetup"}

// download unpacks a kernel and the programs of another architecture into fresh.
func (m machine) download(fresh, dir string) error {
	fmt.Fprintf(os.Stderr, "testkernel: fetching the Debian package %s into %s, once\n", m.kernelPackage(), dir)
	work := filepath.Join(fresh, "work")
	a, err := newApt(m.suite, m.arch, work)
	if err != nil {
		return err
	}
	depends, err := output(a.dir, "apt-cache", append(a.options, "depends", "--no-recommends", "--no-suggests", m.kernelPackage())...)
	if err != nil {
		return err
	}
	kernel, err := imageOf(depends)
	if err != nil {
		return err
	}
	if err := a.unpack(kernel, "", fresh); err != nil {
		return err
	}
	programs, err := a.closure(guestPrograms...)
	if err != nil {
		return err
	}
	for _, name := range programs {
		if err := a.unpack(name, "", userland(fresh)); err != nil {
			return err
		}
	}
	roots, _ := filepath.Glob(filepath.Join(fresh, "lib/modules/*"))
	for _, root := range roots {
		if err := module.Index(root); err != nil {
			return err
		}
	}
	return os.RemoveAll(work)
}

// suffix returns the end of this program's name for the machine's architecture.
func (m machine) suffix() string {
	if m.suite == "" {
		return ""
	}
	return "-" + m.arch
}

// userland returns the directory that lies over the host's file system in a guest of
// another architecture.
func userland(dir string) string { return filepath.Join(dir, "userland") }
