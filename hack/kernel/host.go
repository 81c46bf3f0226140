package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/hack/kernel/guest"
	"github.com/csi-dmsnap/csi-dmsnap/hack/kernel/module"
)

var snapshotTarget = regexp.MustCompile(`(?m)^snapshot\s`)

// hostUsable returns an error that explains why the running kernel cannot be
// the test kernel.
func hostUsable() error {
	if os.Geteuid() != 0 {
		return errors.New("device-mapper needs root")
	}
	// A module that cannot be loaded may be loaded already, or be built in.
	loadErr := loadOnHost(defaultModules)
	if _, err := os.Stat("/dev/mapper/control"); err != nil {
		return errors.Join(fmt.Errorf("no device-mapper: %w", err), loadErr)
	}
	out, err := exec.Command("dmsetup", "targets").CombinedOutput()
	if err != nil {
		return fmt.Errorf("dmsetup targets: %w: %s", err, out)
	}
	if !snapshotTarget.Match(out) {
		return errors.Join(errors.New("device-mapper has no snapshot target"), loadErr)
	}
	return nil
}

func loadOnHost(modules []string) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	tree, err := module.Open(filepath.Join("/lib/modules", unix.ByteSliceToString(u.Release[:])))
	if err != nil {
		return err
	}
	for _, m := range modules {
		err = errors.Join(err, tree.Load(m))
	}
	return err
}

// runOnHost runs the command on the running kernel, with loop devices as its
// scratch disks.
func runOnHost(opts options, dir *runDir) (int, error) {
	// As in hostUsable; if a module is really missing, the command will fail.
	_ = loadOnHost(opts.modules)
	images, hold, err := makeDisks(opts.disks, dir)
	if err != nil {
		return exitFailed, err
	}
	var devices []string
	for _, image := range images {
		device, err := attachLoop(image)
		if err != nil {
			return exitFailed, fmt.Errorf("attaching a loop device to %s: %w", image, err)
		}
		devices = append(devices, device.Name())
		hold = append(hold, device)
	}
	set := []string{
		"DMSNAP_TEST_DISKS=" + strings.Join(devices, ","),
		"LVM_SYSTEM_DIR=" + dir.path,
	}
	if opts.share != "" {
		set = append(set, "DMSNAP_SHARE="+opts.share)
	}
	set = append(set, opts.path()...)
	_, err = os.Stat("/run/udev/control")
	udev := err == nil
	if !udev {
		set = append(set, "DM_DISABLE_UDEV=1")
	}
	// A test must not touch the host's own disks.
	conf := guest.LVMConfig(udev, `"a|^/dev/loop|", "a|^/dev/mapper/|", "r|.*|"`)
	if err := os.WriteFile(dir.file("lvm.conf"), []byte(conf), 0o644); err != nil {
		return exitFailed, err
	}
	g, err := newGuard(dir, opts.argv, nil, hold)
	if err != nil {
		return exitFailed, err
	}
	g.Env = environment(set...)
	g.Stdout, g.Stderr = os.Stdout, os.Stderr
	if opts.stdin {
		g.Stdin = os.Stdin
	}
	if err := g.Start(); err != nil {
		return exitFailed, err
	}
	return waitOnHost(g, opts.timeout)
}

func waitOnHost(g *guard, limit time.Duration) (int, error) {
	died := make(chan error, 1)
	go func() { died <- g.Wait() }()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	var timeout <-chan time.Time
	if limit > 0 {
		timeout = time.After(limit)
	}
	for {
		select {
		case <-died:
			return g.ProcessState.ExitCode(), nil
		case <-timeout:
			g.end()
			<-died
			return exitTimeout, fmt.Errorf("killed after the time limit of %v", limit)
		case sig := <-signals:
			if sig == syscall.SIGQUIT {
				_ = g.Process.Signal(sig)
				continue
			}
			g.end()
			<-died
			return 128 + int(sig.(syscall.Signal)), fmt.Errorf("killed, because the runner received a signal: %v", sig)
		}
	}
}

// attachLoop returns a loop device on the image, open. The kernel detaches the
// device when nobody has it open any more.
func attachLoop(image string) (*os.File, error) {
	back, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer back.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(back.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		// EBUSY means that another process took the device first.
		if !errors.Is(err, unix.EBUSY) {
			return nil, err
		}
	}
}
