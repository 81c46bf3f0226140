package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// defaultModules are loaded before every command: device-mapper snapshots and
// LVM need them.
var defaultModules = []string{"dm-mod", "dm-bufio", "dm-log", "dm-region-hash", "dm-mirror", "dm-snapshot", "dm-delay", "loop"}

type options struct {
	kernel  string
	memory  size.Bytes
	disks   []disk
	modules []string
	timeout time.Duration
	share   string   // absolute and without symbolic links; "" for none
	outputs []string // directories that the Go test binary writes results to
	cpus    int
	lvm2    string // Debian's suite of LVM2's commands; "" for the installed ones
	// commands comes first in the command's PATH; "" for nothing.
	commands string
	tap      string // the tap device of the guest's network; "" for none
	stdin    bool
	verbose  bool
	argv     []string
}

// disk is a scratch disk to make: for this run only, or kept in the file path.
type disk struct {
	path string
	size size.Bytes
}

func parseOptions(args []string, getenv func(string) string) (options, error) {
	var o options
	var memory, disks, modules string
	fallback := func(name, value string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return value
	}
	f := flag.NewFlagSet("testkernel", flag.ContinueOnError)
	f.Usage = func() { fmt.Fprint(f.Output(), usage); f.PrintDefaults() }
	f.StringVar(&o.kernel, "kernel", fallback("DMSNAP_KERNEL", "auto"), kernelNames()+" (DMSNAP_KERNEL)")
	f.StringVar(&memory, "mem", fallback("DMSNAP_MEM", "2G"), "memory of the guest (DMSNAP_MEM)")
	f.StringVar(&disks, "disks", fallback("DMSNAP_DISKS", "1G,1G,1G"),
		"scratch disks: `SIZE,...` for sparse files that are deleted afterwards, PATH:SIZE to keep the file, or none (DMSNAP_DISKS)")
	f.StringVar(&modules, "modules", getenv("DMSNAP_MODULES"),
		"`NAME,...` of modules to load in addition to "+strings.Join(defaultModules, " ")+" (DMSNAP_MODULES)")
	timeout := f.String("timeout", fallback("DMSNAP_TIMEOUT", "15m"), "time limit; 0 for none (DMSNAP_TIMEOUT)")
	f.StringVar(&o.share, "share", getenv("DMSNAP_SHARE"),
		"`DIR` of the host that COMMAND may write to; COMMAND finds the path in DMSNAP_SHARE (DMSNAP_SHARE)")
	cpus := f.String("cpus", fallback("DMSNAP_CPUS", "2"), "processors of the guest, only for qemu, qemu-arm64 and "+umlSMP+" (DMSNAP_CPUS)")
	f.StringVar(&o.lvm2, "lvm2", getenv("DMSNAP_LVM2"), "`SUITE` of Debian, trixie, whose LVM2 commands come first in COMMAND's PATH (DMSNAP_LVM2)")
	f.StringVar(&o.tap, "tap", getenv("DMSNAP_TAP"),
		"`NAME` of a tap device that the guest sees as vec0 and must configure, only for User-mode Linux (DMSNAP_TAP)")
	f.BoolVar(&o.stdin, "i", false, "pass standard input on to COMMAND; otherwise it is empty")
	f.BoolVar(&o.verbose, "v", false, "print the kernel log to standard error as it comes")

	mode := ""
	if len(args) > 0 {
		mode, args = args[0], args[1:]
	}
	switch mode {
	case "exec":
		// All arguments are the command; the flags keep their defaults.
		o.argv = args
		o.outputs = testOutputs(args)
		args = nil
	case "run":
	case "-h", "-help", "--help", "help":
		args = []string{"-help"}
	default:
		return o, fmt.Errorf("%q is neither run nor exec; see testkernel -help", mode)
	}
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if mode == "run" {
		o.argv = f.Args()
	}
	if len(o.argv) == 0 {
		return o, errors.New("no command given; see testkernel -help")
	}

	var err error
	if o.memory, err = parseSize(memory); err != nil {
		return o, fmt.Errorf("memory: %w", err)
	}
	if o.disks, err = parseDisks(disks); err != nil {
		return o, fmt.Errorf("disks: %w", err)
	}
	if o.timeout, err = time.ParseDuration(*timeout); err != nil || o.timeout < 0 {
		return o, fmt.Errorf("invalid time limit %q: must be a duration such as 90s or 15m", *timeout)
	}
	if o.cpus, err = strconv.Atoi(*cpus); err != nil || o.cpus < 1 {
		return o, fmt.Errorf("invalid number of processors %q: must be positive", *cpus)
	}
	if len(o.tap) >= unix.IFNAMSIZ || strings.ContainsAny(o.tap, "/,:= \t\n") {
		return o, fmt.Errorf("invalid name of a tap device: %q", o.tap)
	}
	o.modules = append(o.modules, defaultModules...)
	o.modules = append(o.modules, strings.FieldsFunc(modules, func(r rune) bool { return r == ',' || r == ' ' })...)
	if o.share != "" {
		if o.share, err = filepath.Abs(o.share); err == nil {
			o.share, err = filepath.EvalSymlinks(o.share)
		}
		if err != nil {
			return o, fmt.Errorf("shared directory: %w", err)
		}
		if st, err := os.Stat(o.share); err != nil {
			return o, fmt.Errorf("shared directory: %w", err)
		} else if !st.IsDir() {
			return o, fmt.Errorf("shared directory: %s is not a directory", o.share)
		}
	}
	return o, nil
}

// path returns the variable PATH with the directory commands; nothing without it.
func (o options) path() []string {
	if o.commands == "" {
		return nil
	}
	return []string{"PATH=" + o.commands + ":" + cmp.Or(os.Getenv("PATH"), defaultPath)}
}

// testOutputs returns the directories to which a test binary with these
// arguments writes files that go test reads afterwards, such as coverage.
func testOutputs(args []string) []string {
	var dirs []string
	for _, a := range args {
		name, value, ok := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if !ok || !filepath.IsAbs(value) {
			continue
		}
		switch name {
		case "test.coverprofile":
			dirs = append(dirs, filepath.Dir(value))
		case "test.gocoverdir", "test.outputdir":
			dirs = append(dirs, value)
		}
	}
	return dirs
}

// parseDisks parses a list like "1G,/var/tmp/a.img:64G"; "none" and "" mean no
// disk.
func parseDisks(list string) ([]disk, error) {
	if list == "" || list == "none" {
		return nil, nil
	}
	var disks []disk
	for item := range strings.SplitSeq(list, ",") {
		var d disk
		length := item
		if i := strings.LastIndexByte(item, ':'); i >= 0 {
			if d.path, length = item[:i], item[i+1:]; d.path == "" {
				return nil, fmt.Errorf("%q has an empty path before the colon", item)
			}
		}
		var err error
		if d.size, err = parseSize(length); err != nil {
			return nil, err
		}
		if d.size%4096 != 0 {
			return nil, fmt.Errorf("size %q is not a multiple of 4096 bytes", length)
		}
		disks = append(disks, d)
	}
	return disks, nil
}

// parseSize parses a positive number of bytes with an optional binary unit:
// 4096, 512K, 64M, 1G, 2T.
func parseSize(s string) (size.Bytes, error) {
	unit := size.Bytes(1)
	digits := s
	if s != "" {
		switch s[len(s)-1] | 0x20 {
		case 'k':
			unit = size.KiB
		case 'm':
			unit = size.MiB
		case 'g':
			unit = size.GiB
		case 't':
			unit = size.TiB
		}
		if unit > 1 {
			digits = s[:len(s)-1]
		}
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n == 0 || n > 1<<62/uint64(unit) {
		return 0, fmt.Errorf("invalid size %q: must be a positive number of bytes, or of K, M, G or T", s)
	}
	return size.Bytes(n) * unit, nil
}
