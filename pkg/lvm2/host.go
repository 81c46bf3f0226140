package lvm2

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Host has the settings of LVM2 that belong to a machine and not to a volume group.
// A container must have the machine's own files and directories mounted: nobody
// respects the locks in a private directory.
type Host struct {
	LockDir     string // lvm2's global/locking_dir; default /run/lock/lvm
	Hints       string // lvm2's hints file; default /run/lvm/hints
	DevicesFile string // lvm2's devices file, see DevicesFile; empty: lvm2 does not use one
	SystemID    string // lvm2's system id; empty: none
	Hostname    string // recorded in metadata; default: the kernel's
	Description string // who writes, recorded in metadata; default "Write from csi-dmsnap."
}

const defaultDescription = "Write from csi-dmsnap."

func (h Host) description() string {
	if h.Description == "" {
		return defaultDescription
	}
	return h.Description
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

// dropHints removes lvm2's hints file, which lists the devices with physical
// volumes. While the file exists, the lvm2 tools do not find new physical volumes.
func (h Host) dropHints() error {
	if err := os.Remove(h.hints()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove lvm2's hints file: %w", err)
	}
	return nil
}
