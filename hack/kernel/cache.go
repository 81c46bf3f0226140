package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// cacheDir returns the directory that keeps fetched and built kernels, each in
// a directory of its own.
func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(base, "csi-dmsnap"), nil
}

// cached returns the directory name in base. If the directory is missing, fill
// makes its content once in the directory fresh, which is then renamed to dir:
// a directory in the cache is always complete. Processes that want the same
// directory wait for each other. fill may write the final path dir into files.
func cached(base, name string, fill func(fresh, dir string) error) (string, error) {
	dir := filepath.Join(base, name)
	if isDir(dir) {
		return dir, nil
	}
	if err := os.MkdirAll(base, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		fmt.Fprintf(os.Stderr, "testkernel: waiting for another process to make %s\n", dir)
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return "", fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	if isDir(dir) {
		return dir, nil
	}
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil { // an earlier fill may have been interrupted
		return "", err
	}
	if err := os.Mkdir(fresh, 0o755); err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh)
	if err := fill(fresh, dir); err != nil {
		return "", err
	}
	return dir, os.Rename(fresh, dir)
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}
