package guest

import (
	"fmt"
	"os"
)

// LVMConfig returns an lvm.conf for a system without lvm2's daemons, archives
// and devices file. Without udev, lvm2 makes its device nodes itself. filter is
// the list of patterns of global_filter.
func LVMConfig(udev bool, filter string) string {
	on := 0
	if udev {
		on = 1
	}
	return fmt.Sprintf(`backup {
	archive = 0
	backup = 0
}
activation {
	udev_sync = %d
	udev_rules = %[1]d
	monitoring = 0
}
global {
	use_lvmpolld = 0
	event_activation = 0
}
devices {
	use_devicesfile = 0
	global_filter = [ %s ]
}
`, on, filter)
}

// configureLVM replaces the host's configuration of lvm2.
func configureLVM() error {
	if err := os.RemoveAll("/etc/lvm"); err != nil {
		return err
	}
	if err := os.MkdirAll("/etc/lvm", 0o755); err != nil {
		return err
	}
	return os.WriteFile("/etc/lvm/lvm.conf", []byte(LVMConfig(false, `"a|.*|"`)), 0o644)
}
