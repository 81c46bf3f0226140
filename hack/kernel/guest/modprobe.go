package guest

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/hack/kernel/module"
)

const libModules = "/lib/modules"

func kernelRelease() string {
	var u unix.Utsname
	// It fails only for a bad address.
	_ = unix.Uname(&u)
	return unix.ByteSliceToString(u.Release[:])
}

func loadFrom(root string, names []string) error {
	tree, err := module.Open(filepath.Join(root, kernelRelease()))
	if err != nil {
		return fmt.Errorf("the modules of this kernel: %w", err)
	}
	return tree.Load(names...)
}

// offerModules makes the modules available to programs, in /lib/modules, and to
// the kernel, which runs Modprobe when it needs a module.
func offerModules(cfg Config) error {
	tree := filepath.Join(libModules, kernelRelease())
	if _, err := os.Stat(tree); err != nil {
		if err := os.MkdirAll(libModules, 0o755); err != nil {
			return err
		}
		if err := os.Symlink(filepath.Join(cfg.ModuleRoot, kernelRelease()), tree); err != nil {
			return err
		}
	}
	return os.WriteFile("/proc/sys/kernel/modprobe", []byte(cfg.Modprobe), 0)
}

// Modprobe loads the modules of an alias. The kernel calls it: it runs the
// program in /proc/sys/kernel/modprobe with the arguments -q, -- and the alias.
func Modprobe(alias string) error {
	tree, err := module.Open(filepath.Join(libModules, kernelRelease()))
	if err != nil {
		return err
	}
	return tree.LoadAlias(alias)
}
