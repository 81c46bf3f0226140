//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestProbe_killed: the freeze call of a killed process freezes the file system when
// the next process resumes the device; the next process then thaws it.
func TestProbe_killed(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 64 * size.MiB, Mode: Filesystem, FSType: "ext4"}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	lvm(t, "mkfs.ext4", "-q", "-F", path)
	ok(t, p.SetFormatted(ctx, v.LV))
	dir := t.TempDir()
	ok(t, unix.Mount(path, dir, "ext4", 0, ""))
	t.Cleanup(func() {
		setFrozen(dir, false)
		unix.Unmount(dir, 0)
	})
	file := filepath.Join(dir, "file")
	ok(t, os.WriteFile(file, bytes.Repeat([]byte("x"), 1<<20), 0o600)) // so that the freeze has data to write back
	d := must(p.latest())(t).topDevice(must(p.latest())(t).VG.LV(v.LV))
	must(p.noteProbe(v.LV))(t)
	ok(t, p.dm.Suspend(ctx, d.name, dm.SuspendOptions{SkipLockFS: true}))
	ask := exec.Command("fsfreeze", "-f", dir)
	ok(t, ask.Start())
	for waits := 0; waits < 20; time.Sleep(10 * time.Millisecond) { // until fsfreeze waits for the device, and not for its own code
		stat := must(os.ReadFile(fmt.Sprintf("/proc/%d/stat", ask.Process.Pid)))(t)
		if strings.Contains(string(stat), "(fsfreeze) D ") {
			waits++
		} else {
			waits = 0
		}
	}
	ok(t, ask.Process.Kill()) // it ends when the device is resumed
	ok(t, p.Close())

	p = openPool(t, p.config)
	if err := ask.Wait(); err == nil {
		t.Error("the freeze was not waiting for the device")
	}
	note := p.probeNote(v.LV)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(note); errors.Is(err, os.ErrNotExist) {
			break
		}
		if time.Now().After(end) {
			t.Error("the next process did not remove the note")
			break
		}
	}
	if err := setFrozen(dir, false); !errors.Is(err, unix.EINVAL) {
		t.Errorf("the file system was left frozen: %v", err)
	}
	ok(t, os.WriteFile(file, []byte("y"), 0o600))
	unmount(t, dir)
	ok(t, p.Deactivate(ctx, v.LV))
}
