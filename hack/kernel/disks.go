package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// makeDisks makes the files of the scratch disks. It returns their paths in
// dir, which have no characters that a kernel's command line treats specially,
// and the files, locked. The caller keeps the files open until the kernel has
// ended.
func makeDisks(disks []disk, dir *runDir) (paths []string, locks []*os.File, err error) {
	for i, d := range disks {
		path := dir.file("disk" + strconv.Itoa(i))
		file := path
		if d.path != "" {
			if file, err = filepath.Abs(d.path); err != nil {
				return nil, nil, err
			}
			if err := os.Symlink(file, path); err != nil {
				return nil, nil, err
			}
		}
		lock, err := makeDisk(file, int64(d.size))
		if err != nil {
			return nil, nil, fmt.Errorf("scratch disk %d: %w", i, err)
		}
		paths = append(paths, path)
		locks = append(locks, lock)
	}
	return paths, locks, nil
}

// makeDisk makes a sparse file of the given length in bytes, or lengthens an
// existing file. It never shortens a file that an earlier run has kept. It
// returns the file locked, so that a kernel that is still dying and the next
// kernel never use the same disk.
func makeDisk(file string, length int64) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := prepareDisk(f, length); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return f, nil
}

func prepareDisk(f *os.File, length int64) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	if st.Size() > length {
		return fmt.Errorf("the file has %d bytes, more than the disk's size of %d bytes", st.Size(), length)
	}
	giveUp := time.Now().Add(10 * time.Second)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f.Truncate(length)
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(giveUp) {
			return fmt.Errorf("another test kernel uses it as its disk: %w", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
