// Command testkernel runs a command, usually a test binary, on a Linux kernel
// that has device-mapper. It uses the host's kernel if possible, else User-mode
// Linux, else QEMU with a Debian kernel, or the kernel that is named. The
// constant usage describes the command line; hack/testkernel builds the
// program.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/csi-dmsnap/csi-dmsnap/hack/kernel/guest"
)

const usage = `usage: testkernel run [flags] [--] COMMAND [ARG...]
       testkernel exec COMMAND [ARG...]      (for go test -exec: no flags)

Runs COMMAND as root on a test kernel, with the caller's working directory,
environment and file system. What COMMAND writes is lost, except in the shared
directory. The exit code is that of COMMAND, or 124 if the time limit is over,
125 if the test kernel failed, 128+N after signal N. SIGINT and SIGTERM to the
runner cut the kernel's power; the runner passes SIGQUIT on to COMMAND.

COMMAND finds the scratch disks in DMSNAP_TEST_DISKS, comma-separated.

Flags, and the environment variables that set their defaults:
`

// The runner's own exit codes.
const (
	exitTimeout = 124
	exitFailed  = 125
)

func main() {
	if os.Getpid() == 1 && os.Getenv(guest.ConfigVar) != "" {
		guest.Main()
	}
	if len(os.Args) == 4 && os.Args[1] == "-q" && os.Args[2] == "--" {
		if guest.Modprobe(os.Args[3]) != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 4 && os.Args[1] == "guard" {
		exit(guardMain(os.Args[2:]))
	}
	opts, err := parseOptions(os.Args[1:], os.Getenv)
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testkernel:", err)
		os.Exit(2)
	}
	exit(run(opts))
}

func exit(code int, err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "testkernel:", err)
	}
	os.Exit(code)
}

func run(opts options) (int, error) {
	kernel, err := choose(opts.kernel)
	if err != nil {
		return exitFailed, err
	}
	if opts.lvm2 != "" {
		if opts.commands, err = findLVM2(opts.lvm2); err != nil {
			return exitFailed, err
		}
	}
	dir, err := newRunDir()
	if err != nil {
		return exitFailed, err
	}
	defer dir.remove() // if no guard was started
	uml, isUML := umlKernels[kernel]
	if opts.tap != "" && !isUML {
		return exitFailed, fmt.Errorf("only User-mode Linux can have a tap device, but the kernel is %s", kernel)
	}
	switch {
	case isUML:
		return runUML(uml, opts, dir)
	case kernel == "host":
		return runOnHost(opts, dir)
	default:
		return runQEMU(machines[kernel], opts, dir)
	}
}
