package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/hack/kernel/guest"
	"github.com/csi-dmsnap/csi-dmsnap/hack/kernel/module"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	// Each disk takes one of the 32 slots of the virtual bus.
	qemuMaxDisks = 16
	// The directory of the modules in the initial root file system.
	earlyModules = "/modules"
)

// qemuModules are the modules that the guest needs to reach the host and its disks.
var qemuModules = []string{"virtio_pci", "virtio_blk", "virtio_console", "9pnet_virtio", "9p", "overlay"}

func runQEMU(m machine, opts options, dir *runDir) (int, error) {
	if _, err := exec.LookPath(m.program); err != nil {
		return exitFailed, fmt.Errorf("%w: install the Debian package %s (hack/deps.sh --qemu)", err, m.deb)
	}
	if len(opts.disks) > qemuMaxDisks {
		return exitFailed, fmt.Errorf("%d scratch disks: with QEMU there are at most %d", len(opts.disks), qemuMaxDisks)
	}
	kernel, err := fetchKernel(m)
	if err != nil {
		return exitFailed, err
	}
	images, hold, err := makeDisks(opts.disks, dir)
	if err != nil {
		return exitFailed, err
	}
	argv := append([]string{m.program}, m.accelerate(kernel.image)...)
	argv = append(argv,
		"-nodefaults", "-display", "none", "-no-reboot",
		"-m", strconv.FormatUint(uint64(opts.memory/size.MiB), 10)+"M", "-smp", strconv.Itoa(opts.cpus),
		"-kernel", kernel.image, "-initrd", dir.file("initramfs"),
		"-append", "console="+m.console+" panic=-1 "+guest.ConfigVar+"=/config.json",
		"-chardev", "stdio,id=log,signal=off", "-serial", "chardev:log",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=line,fd=3", "-device", "virtserialport,chardev=line",
	)
	argv = append(argv, share("root", "/", true)...)
	var devices []string
	for i, image := range images {
		id := "disk" + strconv.Itoa(i)
		argv = append(argv, "-drive", "if=none,format=raw,discard=unmap,id="+id+",file="+image,
			"-device", "virtio-blk-pci,drive="+id)
		devices = append(devices, "/dev/vd"+string(rune('a'+i)))
	}
	if kernel.userland != "" {
		opts.commands = "/sbin:/bin" // only its programs are there, because the host's are in /usr
	}
	cfg, err := guestConfig(opts, dir, devices, m.suffix())
	if err != nil {
		return exitFailed, err
	}
	const how = "trans=virtio,version=9p2000.L,msize=512000,"
	cfg.EarlyModuleRoot, cfg.EarlyModules = earlyModules, qemuModules
	cfg.HostRoot = "/host"
	cfg.EarlyMounts = []guest.Mount{
		{Source: "proc", Target: "/proc", Type: "proc"},
		{Source: "devtmpfs", Target: "/dev", Type: "devtmpfs"},
		{Source: "root", Target: cfg.HostRoot, Type: "9p", Data: how + "cache=loose"},
	}
	if kernel.userland != "" {
		const over = "/userland"
		argv = append(argv, share("userland", kernel.userland, true)...)
		cfg.EarlyMounts = append(cfg.EarlyMounts, guest.Mount{Source: "userland", Target: over, Type: "9p", Data: how + "cache=loose"})
		cfg.HostRoot = over + ":" + cfg.HostRoot
	}
	cfg.Channel = "/dev/vport0p1"
	cfg.ModuleRoot = kernel.modules
	for i, path := range shares(opts) {
		tag := "share" + strconv.Itoa(i)
		argv = append(argv, share(tag, path, false)...)
		cfg.Shares = append(cfg.Shares, guest.Mount{Source: tag, Target: path, Type: "9p", Data: how + "cache=mmap"})
	}
	if err := writeInitramfs(dir, kernel, cfg); err != nil {
		return exitFailed, fmt.Errorf("making the initial root file system: %w", err)
	}
	line, guestEnd, err := socketPair()
	if err != nil {
		return exitFailed, err
	}
	g, err := newGuard(dir, argv, []*os.File{guestEnd}, hold)
	if err != nil {
		return exitFailed, err
	}
	log := &kernelLog{live: opts.verbose}
	g.Stdout, g.Stderr = log, log
	return (&session{opts: opts, guard: g, log: log, line: line}).run()
}

// share returns the options that make a directory visible in the guest.
func share(tag, path string, readOnly bool) []string {
	option := "local,id=" + tag + ",security_model=none,multidevs=remap,path=" + strings.ReplaceAll(path, ",", ",,")
	if readOnly {
		option += ",readonly=on"
	}
	return []string{"-fsdev", option, "-device", "virtio-9p-pci,fsdev=" + tag + ",mount_tag=" + tag}
}

// writeInitramfs writes the initial root file system: this program, its
// configuration, and the modules that it needs to reach the host's file system.
func writeInitramfs(dir *runDir, kernel debKernel, cfg guest.Config) error {
	root := filepath.Join(kernel.modules, kernel.release)
	tree, err := module.Open(root)
	if err != nil {
		return err
	}
	files, err := tree.Order(cfg.EarlyModules...)
	if err != nil {
		return err
	}
	var archive cpio
	for _, file := range append(files, filepath.Join(root, "modules.builtin")) {
		rel, err := filepath.Rel(kernel.modules, file)
		if err != nil {
			return err
		}
		if err := archive.addFile(earlyModules[1:]+"/"+rel, file); err != nil {
			return err
		}
	}
	if err := archive.addFile("init", cfg.Modprobe); err != nil {
		return err
	}
	data, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	archive.add("config.json", data)
	return os.WriteFile(dir.file("initramfs"), archive.bytes(), 0o600)
}

// accelerate returns the options for the fastest way to run the machine here.
func (m machine) accelerate(image string) []string {
	switch {
	case len(m.args) > 0:
		return append([]string{"-accel", "tcg,thread=multi"}, m.args...)
	case kvmWorks(m.program, image):
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	return []string{"-accel", "tcg,thread=multi", "-cpu", "max"}
}

// kvmWorks reports whether a kernel gets as far as its first line with KVM: the
// device may exist and not work.
func kvmWorks(program, image string) bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-accel", "kvm", "-cpu", "host", "-nodefaults", "-display", "none", "-no-reboot",
		"-m", "256M", "-kernel", image, "-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1", "-serial", "stdio")
	out, err := cmd.StdoutPipe()
	if err != nil || cmd.Start() != nil {
		return false
	}
	works := false
	for lines := bufio.NewScanner(out); !works && lines.Scan(); {
		works = strings.Contains(lines.Text(), "Linux version")
	}
	cancel()
	_ = cmd.Wait()
	return works
}
