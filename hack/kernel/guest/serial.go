package guest

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/hack/kernel/wire"
)

// serial is the line to the runner.
type serial struct {
	*wire.Writer
	tty *os.File
}

// openSerial opens the device. If the device is a terminal, it is set to pass
// every byte unchanged.
func openSerial(name string) (*serial, error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err == nil {
		t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
		t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8 | unix.CREAD | unix.CLOCAL
		t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
		err = unix.IoctlSetTermios(fd, unix.TCSETS, t)
	}
	if err != nil && !errors.Is(err, unix.ENOTTY) {
		return nil, fmt.Errorf("setting %s raw: %w", name, err)
	}
	tty := os.NewFile(uintptr(fd), name)
	return &serial{wire.NewWriter(tty), tty}, nil
}
