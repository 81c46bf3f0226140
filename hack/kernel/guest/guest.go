// Package guest is the first process of the test kernel. It makes the root
// writable, loads modules, runs one command and powers off.
package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/hack/kernel/wire"
)

// Main is the main function of the first process. It does not return.
func Main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "testkernel:", err)
	}
	// Usually the runner has killed the guest by now, because it has the exit
	// code.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

// serve runs the command as configured. It returns only errors that it could
// not send to the runner.
func serve() error {
	data, err := os.ReadFile(os.Getenv(ConfigVar))
	if err != nil {
		return fmt.Errorf("reading the guest's configuration: %w", err)
	}
	var cfg Config
	if err := json.Unmarshal(data, &cfg); err != nil {
		return fmt.Errorf("reading the guest's configuration: %w", err)
	}
	if err := early(cfg); err != nil {
		return err
	}
	line, err := openSerial(cfg.Channel)
	if err != nil {
		return err
	}
	code := 125
	if err = prepare(cfg); err != nil {
		err = fmt.Errorf("preparing the test kernel: %w", err)
	} else {
		code, err = runCommand(cfg, line)
	}
	if cfg.Sync {
		err = errors.Join(err, syncDisks())
	}
	if err != nil {
		if err := line.Write(wire.Stderr, []byte("testkernel: "+err.Error()+"\n")); err != nil {
			return err
		}
	}
	return line.Write(wire.Exit, []byte{byte(code)})
}

// early makes the host's file system and the device of the serial line
// available.
func early(cfg Config) error {
	if err := loadFrom(cfg.EarlyModuleRoot, cfg.EarlyModules); err != nil {
		return err
	}
	for _, m := range cfg.EarlyMounts {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

func prepare(cfg Config) error {
	if err := makeRoot(cfg.HostRoot, cfg.Shares); err != nil {
		return err
	}
	if err := withoutHotplug(); err != nil {
		return err
	}
	// This comes first, because some modules request others when they are
	// loaded.
	if err := offerModules(cfg); err != nil {
		return err
	}
	if err := loadFrom(cfg.ModuleRoot, cfg.Modules); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("setting up the lo interface: %w", err)
	}
	return configureLVM()
}

// withoutHotplug stops the kernel from running a program for each uevent. The
// kernels of distributions run none, and udev does not need it. In a User-mode
// Linux the attempt to run /sbin/hotplug, which does not exist, takes most of the
// time in which a device is made.
func withoutHotplug() error {
	f, err := os.OpenFile("/proc/sys/kernel/hotplug", os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) { // the kernel cannot run one
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString("\n")
	return errors.Join(err, f.Close())
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}

// syncDisks writes the kernel's cached data to the disks. It has a time limit,
// because a suspended device-mapper device with dirty pages would block sync
// forever.
func syncDisks() error {
	done := make(chan struct{})
	go func() { unix.Sync(); close(done) }()
	select {
	case <-done:
		return nil
	case <-time.After(10 * time.Second):
		return errors.New("sync does not end, so some writes are not on the disks; look for a device that was left suspended")
	}
}
