package main

import (
	"debug/buildinfo"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/hack/kernel/guest"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// umlMaxDisks is the limit of the ubd driver (MAX_DEV).
const umlMaxDisks = 16

func runUML(kernel umlKernel, opts options, dir *runDir) (int, error) {
	if len(opts.disks) > umlMaxDisks {
		return exitFailed, fmt.Errorf("%d scratch disks: with User-mode Linux there are at most %d", len(opts.disks), umlMaxDisks)
	}
	if raceBuilt(opts.argv[0]) {
		return exitFailed, fmt.Errorf("%s is built with -race, which needs addresses that User-mode Linux "+
			"does not have (above 512 GiB); leave -race out, or use DMSNAP_KERNEL=host or qemu", opts.argv[0])
	}
	words, err := kernel.words(opts.cpus)
	if err != nil {
		return exitFailed, err
	}
	files, err := kernel.find()
	if err != nil {
		return exitFailed, err
	}
	images, locks, err := makeDisks(opts.disks, dir)
	if err != nil {
		return exitFailed, err
	}
	var devices []string
	for i, image := range images {
		devices = append(devices, "/dev/ubd"+string(rune('a'+i)))
		words = append(words, fmt.Sprintf("ubd%dd=%s", i, image))
	}
	cfg, err := guestConfig(opts, dir, devices, "")
	if err != nil {
		return exitFailed, err
	}
	cfg.EarlyModuleRoot, cfg.EarlyModules = files.modules, []string{"overlay"}
	cfg.HostRoot = "/"
	cfg.Channel = "/dev/ttyS0"
	cfg.ModuleRoot = files.modules
	for _, path := range shares(opts) {
		cfg.Shares = append(cfg.Shares, guest.Mount{Source: "none", Target: path, Type: "hostfs", Data: path})
	}
	if err := writeJSON(dir.file("config.json"), cfg); err != nil {
		return exitFailed, err
	}
	line, guestEnd, err := socketPair()
	if err != nil {
		return exitFailed, err
	}
	log := &kernelLog{live: opts.verbose}
	argv := slices.Concat([]string{files.kernel}, words, []string{
		"mem=" + strconv.FormatUint(uint64(opts.memory/size.KiB), 10) + "K",
		"root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
		"init=" + dir.file("init"),
		guest.ConfigVar + "=" + dir.file("config.json"),
		"uml_dir=" + dir.path, "umid=uml",
		"con=null", "con0=null,fd:1", "ssl=null", "ssl0=fd:3",
		"panic=-1", "noreboot", "printk.time=1",
	})
	if !slices.ContainsFunc(opts.modules, func(m string) bool { return strings.Contains(m, "raid") }) {
		// Measuring which RAID 6 code is fastest takes half of the boot time.
		argv = append(argv, "initcall_blacklist=raid6_select_algo")
	}
	if opts.tap != "" {
		argv = append(argv, "vec0:transport=tap,depth=128,gro=1,ifname="+opts.tap)
	}
	env, err := umlEnvironment(opts.memory)
	if err != nil {
		return exitFailed, err
	}
	if kernel.xstate {
		library, err := xstateLibrary()
		if err != nil {
			return exitFailed, err
		}
		if library != "" {
			env = append(env, "LD_PRELOAD="+library)
		}
	}
	g, err := newGuard(dir, argv, []*os.File{guestEnd}, locks)
	if err != nil {
		return exitFailed, err
	}
	g.Stdout, g.Stderr = log, log
	g.Env = env
	// A kernel that panics aborts, and its core file would be as large as its
	// memory.
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
	return (&session{opts: opts, guard: g, log: log, line: line, nudge: true}).run()
}

// raceBuilt reports whether the file is a Go program with the race detector.
func raceBuilt(file string) bool {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool {
		return s.Key == "-race" && s.Value == "true"
	})
}

// umlEnvironment returns the kernel's own environment. TMPDIR in it names the
// directory for the file that the kernel uses as its memory. The directory is
// in memory if possible; it must have enough room and allow execution, which
// containers often forbid.
func umlEnvironment(memory size.Bytes) ([]string, error) {
	for _, dir := range []string{"/dev/shm", "/tmp", "/var/tmp"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) != nil || fs.Flags&unix.ST_NOEXEC != 0 ||
			size.Bytes(fs.Bavail)*size.Bytes(fs.Bsize) < memory || unix.Access(dir, unix.W_OK) != nil {
			continue
		}
		env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "TMPDIR=") })
		return append(env, "TMPDIR="+dir), nil
	}
	return nil, fmt.Errorf("no room for the test kernel's memory: none of /dev/shm, /tmp and /var/tmp "+
		"has %v free and allows execution", memory)
}
