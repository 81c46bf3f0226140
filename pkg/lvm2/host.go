package lvm2

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Host is what LVM2 has per machine and not per volume group. In a container
// these are the machine's own files and directories, mounted into it: a private
// lock directory would exclude nobody.
type Host struct {
	LockDir     string // lvm2's global/locking_dir; default /run/lock/lvm
	Hints       string // lvm2's hints file; default /run/lvm/hints
	DevicesFile string // lvm2's devices file; empty: lvm2 does not use one
	SystemID    string // lvm2's system id; empty: none
	Hostname    string // written into metadata, for people; default the kernel's
}

func (h Host) lockDir() string {
	if h.LockDir == "" {
		return "/run/lock/lvm"
	}
	return h.LockDir
}

func (h Host) hints() string {
	if h.Hints == "" {
		return "/run/lvm/hints"
	}
	return h.Hints
}

func (h Host) hostname() string {
	if h.Hostname != "" {
		return h.Hostname
	}
	if name, err := os.Hostname(); err == nil {
		return name
	}
	return "localhost"
}

// dropHints removes lvm2's note of which devices have physical volumes: until
// then its tools would not look at new ones.
func (h Host) dropHints() error {
	if err := os.Remove(h.hints()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove lvm2's hints file: %w", err)
	}
	return nil
}
