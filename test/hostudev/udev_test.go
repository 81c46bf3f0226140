//go:build kernel

package hostudev

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/test/machine"
)

// startUdev runs the host's udevd until the end of the test. It returns once
// udevd has handled the devices that exist already.
func startUdev(t *testing.T) {
	t.Helper()
	prepared(t)(machine.Udev())
}

// events counts the kernel's events for device-mapper devices.
type events struct {
	socket int
	done   chan struct{}

	mu        sync.Mutex
	all       int
	synthetic int // requested through sysfs, as udev does when a device that it watches was closed after a write
	lost      bool
}

func watchEvents(t *testing.T) *events {
	t.Helper()
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	must(t, err)
	const kernel = 1 // the group to which the kernel sends, udev's own is 2
	must(t, unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernel}))
	must(t, unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20))
	must(t, unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}))
	e := &events{socket: s, done: make(chan struct{})}
	ended := make(chan struct{})
	go func() { defer close(ended); e.receive() }()
	t.Cleanup(func() { close(e.done); <-ended; unix.Close(s) })
	return e
}

func (e *events) receive() {
	message := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(e.socket, message, 0)
		select {
		case <-e.done:
			return
		default:
		}
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		e.mu.Lock()
		switch {
		case err != nil:
			e.lost = true
		case bytes.Contains(message[:n], []byte("/virtual/block/dm-")):
			e.all++
			if bytes.Contains(message[:n], []byte("SYNTH_UUID=")) {
				e.synthetic++
			}
		}
		e.mu.Unlock()
	}
}

// count returns the numbers of events since the last call.
func (e *events) count(t *testing.T) (all, synthetic int) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.lost {
		t.Error("events were lost")
	}
	all, synthetic = e.all, e.synthetic
	e.all, e.synthetic = 0, 0
	return all, synthetic
}

// property returns a property of a block device from udev's database. device is
// the name in /dev.
func property(t *testing.T, device, key string) string {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join("/dev", device), &st))
	db, err := os.ReadFile("/run/udev/data/b" + number(st.Rdev))
	must(t, err)
	for line := range strings.Lines(string(db)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "E:"+key+"="); ok {
			return value
		}
	}
	return ""
}
