// Command testkernel runs a command, most often a test binary, on a Linux
// kernel that has device-mapper: the host's where that can be used, else User
// Mode Linux, else QEMU with a Debian kernel, or the one that is asked for by
// its name. See usage for how it is called; hack/testkernel builds it.
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

Runs COMMAND as root on a test kernel, with this working directory and
environment and this file system; what it writes there is lost, except in the
shared directory. Its exit code is the exit code; 124 means the time limit,
125 that the test kernel failed, 128+N the signal N. SIGINT and SIGTERM to the
runner are a power cut for the kernel; SIGQUIT is passed on to COMMAND.

COMMAND finds the scratch disks in DMSNAP_TEST_DISKS, comma-separated.

Flags, and the environment variables that set their defaults:
`

// Exit codes of the runner's own.
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
	dir, err := newRunDir()
	if err != nil {
		return exitFailed, err
	}
	defer dir.remove() // where it came to no guard
	uml, isUML := umlKernels[kernel]
	if opts.tap != "" && !isUML {
		return exitFailed, fmt.Errorf("a tap device is only for User Mode Linux, this kernel is %s", kernel)
	}
	switch {
	case isUML:
		return runUML(uml, opts, dir)
	case kernel == "host":
		return runOnHost(opts, dir)
	default:
		return runQEMU(opts, dir)
	}
}
