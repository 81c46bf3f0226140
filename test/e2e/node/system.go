package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// kept has the directories whose content must survive a reboot.
var kept = []string{"/var/lib/containerd", "/var/lib/kubelet", "/var/log/pods"}

// prepareSystem mounts what containerd and the kubelet need.
func prepareSystem() error {
	const disk = "/var/lib/node"
	if err := mount(systemDevice, disk, "ext4", unix.MS_NOATIME, "data=writeback,nobarrier"); err != nil {
		return err
	}
	for _, dir := range kept {
		source := filepath.Join(disk, filepath.Base(dir))
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
		// containerd makes overlays here, and an overlay cannot lie on another
		// one, so these directories are on the disk itself.
		if err := mount(source, dir, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	if err := mount("mqueue", "/dev/mqueue", "mqueue", 0, ""); err != nil {
		return err
	}
	const groups = "/sys/fs/cgroup"
	if err := mount("cgroup2", groups, "cgroup2", 0, ""); err != nil {
		return err
	}
	if err := os.WriteFile(groups+"/cgroup.subtree_control", []byte("+cpu +memory +pids +io"), 0); err != nil {
		return fmt.Errorf("cgroup controllers: %w", err)
	}
	if err := describeProcessor(); err != nil {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "")
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mounting %s on %s: %w", source, target, err)
	}
	return nil
}

// describeProcessor adds to /proc/cpuinfo a clock speed and a topology, which
// the kubelet's cAdvisor needs and User-mode Linux does not report.
func describeProcessor() error {
	const real = "/proc/cpuinfo"
	data, err := os.ReadFile(real)
	if err != nil {
		return err
	}
	text := strings.TrimSpace(string(data)) + "\n" +
		"cpu MHz\t\t: 2000.000\nphysical id\t: 0\nsiblings\t: 1\ncore id\t\t: 0\ncpu cores\t: 1\n\n"
	const described = "/run/cpuinfo"
	if err := os.WriteFile(described, []byte(text), 0o444); err != nil {
		return err
	}
	return mountFile(described, real)
}

func mountFile(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting %s on %s: %w", source, target, err)
	}
	return nil
}

// nameHost gives the node its name.
func nameHost(name string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return err
	}
	if err := os.WriteFile("/etc/hosts", []byte("127.0.0.1 localhost "+name+"\n"), 0o644); err != nil {
		return err
	}
	// There is no name server. Without one at this address the resolver fails immediately.
	return os.WriteFile("/etc/resolv.conf", []byte("nameserver 127.0.0.1\n"), 0o644)
}
