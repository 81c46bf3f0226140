package dm

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// TestError_text: the message names operation, device, reason and errno, and
// errors.Is finds both.
func TestError_text(t *testing.T) {
	for want, err := range map[string]*Error{
		"device-mapper: remove vg-a: device is in use: device or resource busy": {opRemove.name, "vg-a", opRemove.explain(unix.EBUSY)},
		"device-mapper: list devices: no space left on device":                  {opList.name, "", opList.explain(unix.ENOSPC)},
		"device-mapper: load table of vg-a: kernel refused the table; see its log (dmesg) for the reason: invalid argument": {
			opLoad.name, "vg-a", opLoad.explain(unix.EINVAL)},
		"device-mapper: load table of vg-a: needs CAP_SYS_ADMIN in the initial user namespace: permission denied": {
			opLoad.name, "vg-a", opLoad.explain(unix.EACCES)},
	} {
		if err.Error() != want {
			t.Errorf("error is %q, not %q", err, want)
		}
	}
	err := error(&Error{opRemove.name, "vg-a", opRemove.explain(unix.EBUSY)})
	if !errors.Is(err, ErrBusy) || !errors.Is(err, unix.EBUSY) || errors.Is(err, ErrExists) || errors.Is(err, ErrNotFound) {
		t.Errorf("%v is not exactly ErrBusy and EBUSY", err)
	}
}
