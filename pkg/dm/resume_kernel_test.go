//go:build kernel

package dm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestResumeRefused: a table that the kernel takes when it is loaded and refuses
// when it is to become the live one leaves the device running with the one that it had.
func TestResumeRefused(t *testing.T) {
	c := open(t)
	path := stacked(t, c)
	file := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, 64<<20))
	out, err := exec.Command("losetup", "-b", "4096", "--show", "-f", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v %s", err, out)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() { must(t, exec.Command("losetup", "-d", loop).Run()) })
	large, err := DeviceOf(loop)
	must(t, err)
	// The second part does not begin at a block of its disk's.
	refused := parse(t, fmt.Sprintf("0 1 linear %v 0\n1 131064 linear %v 0", disk(t, 0), large))
	for _, suspended := range []bool{false, true} {
		must(t, c.Load("t-top", refused, false))
		if suspended {
			must(t, c.Suspend(t.Context(), "t-top", SuspendOptions{}))
		}
		if err := c.Resume("t-top", 0); err == nil {
			t.Fatal("the table was taken: this test shows nothing")
		} else if strings.Contains(err.Error(), "still suspended") {
			t.Error(err)
		}
		if info := checkRunning(t, c); info.Loaded {
			t.Error("the refused table is still loaded")
		}
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT, 0)
		must(t, err)
		_, err = unix.Pwrite(fd, aligned(t), 0)
		must(t, err)
		must(t, unix.Close(fd))
	}
	must(t, c.Remove("t-top", 0))
}
