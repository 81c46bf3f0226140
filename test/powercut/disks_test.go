//go:build powercut

package powercut

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// memoryDir is a file system in memory. A power cut takes nothing from the
// disks that the machine has written to them, so the disks need no real one.
const memoryDir = "/dev/shm"

// diskSizes has the pool's disks. The second joins the pool later.
var diskSizes = map[string]size.Bytes{"pv0": 224 * size.MiB, "pv1": 96 * size.MiB}

// latestJoin is after how many machines the second disk joins at the latest.
const latestJoin = 6

// memoryPrefix begins the names of the runs' directories in memoryDir.
const memoryPrefix = "dmsnap-powercut-disks-"

// freeMemory deletes the disks of runs that were killed, below dir. Each run locks its directory, and
// the kernel drops the lock when the run ends. A directory that is younger than a minute
// may not be locked yet.
func freeMemory(dir string) {
	runs, _ := filepath.Glob(filepath.Join(dir, memoryPrefix+"*"))
	for _, dir := range runs {
		if info, err := os.Stat(dir); err != nil || time.Since(info.ModTime()) < time.Minute {
			continue
		}
		if lock, err := lockDir(dir); err == nil {
			os.RemoveAll(dir)
			lock.Close()
		}
	}
}

// lockDir locks a directory until the result is closed. Errors: unix.EWOULDBLOCK.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// TestFreeMemory_killedRun: only the disks of runs that have ended without deleting them
// are deleted.
func TestFreeMemory_killedRun(t *testing.T) {
	base := t.TempDir()
	for _, x := range []struct {
		name                     string
		age                      time.Duration
		running, other, mustStay bool
	}{
		{name: "killed", age: time.Hour}, {name: "running", age: time.Hour, running: true, mustStay: true},
		{name: "young", mustStay: true}, {name: "other", age: time.Hour, other: true, mustStay: true},
	} {
		dir := filepath.Join(base, memoryPrefix+x.name)
		if x.other {
			dir = filepath.Join(base, x.name)
		}
		at := time.Now().Add(-x.age)
		if err := errors.Join(os.Mkdir(dir, 0o700), os.Chtimes(dir, at, at)); err != nil {
			t.Fatal(err)
		}
		if x.running {
			lock, err := lockDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer lock.Close()
		}
		freeMemory(base)
		if _, err := os.Stat(dir); (err == nil) != x.mustStay {
			t.Errorf("%s: %v", x.name, err)
		}
	}
}

// inMemory puts the disks of the run into memory, if there is room.
func (r *run) inMemory() {
	freeMemory(memoryDir)
	var fs unix.Statfs_t
	if os.Getenv("TMPDIR") == "" && unix.Statfs(memoryDir, &fs) == nil && size.Bytes(fs.Bavail)*size.Bytes(fs.Bsize) > size.GiB {
		if dir, err := os.MkdirTemp(memoryDir, memoryPrefix); err == nil {
			if r.lock, err = lockDir(dir); err != nil {
				r.t.Fatal(err)
			}
			r.memory, r.disks = dir, dir
			return
		}
	}
	if err := os.Mkdir(r.disks, 0o755); err != nil {
		r.t.Fatal(err)
	}
}

// makeDisks makes the pool's disks. They are blank where LVM2 and others look
// for a signature. In every MiB, where new stores and volumes begin, they have
// random bytes, as an earlier owner leaves them.
func (r *run) makeDisks() {
	r.t.Helper()
	left := make([]byte, 64*size.KiB)
	for i := range left {
		left[i] = byte(r.random.Uint32())
	}
	r.joins = r.boots + r.random.IntN(latestJoin+1)
	for _, disk := range []string{"pv0", "pv1"} {
		f, err := os.Create(r.disk(disk))
		if err != nil {
			r.t.Fatal(err)
		}
		err = f.Truncate(int64(diskSizes[disk]))
		for at := size.MiB; at < diskSizes[disk]-4*size.MiB; at += size.MiB { // whatever the offset of the first extent
			_, failed := f.WriteAt(left, int64(at))
			err = errors.Join(err, failed)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			r.t.Fatal(err)
		}
	}
}

// copyDisks copies the disks to files of the same names with an ending, so that
// a failure can be repeated.
func (r *run) copyDisks(ending string) error {
	for _, disk := range []string{"pv0", "pv1"} {
		if err := exec.Command("cp", "--sparse=auto", "--reflink=auto", r.disk(disk), r.disk(disk+ending)).Run(); err != nil {
			return err
		}
	}
	return nil
}

// keepDisks copies the disks of a failed run from memory to the run's
// directory.
func (r *run) keepDisks() {
	if r.memory == "" {
		return
	}
	if out, err := exec.Command("cp", "-r", "--sparse=always", r.memory, r.file("disks")).CombinedOutput(); err != nil {
		r.t.Logf("keeping the disks: %v\n%s", err, strings.TrimSpace(string(out)))
	}
}
