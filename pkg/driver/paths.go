package driver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// inside tells whether a path without symbolic links is below the kubelet directory.
func (d *Driver) inside(path string) bool {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(d.kubeletDir, "/")+"/")
	return ok && rest != ""
}

// ownPath checks a staging or target path and returns it without symbolic
// links. Mounts are made and files removed there as root, so whoever can put a
// symbolic link into it must not lead us out of the kubelet directory. The file
// system that is mounted there is not asked: it may be one that answers nothing
// any more, and must be unmounted all the same. Errors: INVALID_ARGUMENT.
func (d *Driver) ownPath(path string) (string, error) {
	if !filepath.IsAbs(path) || slices.Contains(strings.Split(path, "/"), "..") {
		return "", invalid("path %q is not absolute or contains ..", path)
	}
	path = filepath.Clean(path)
	parent, err := resolve(filepath.Dir(path))
	if err != nil {
		return "", pathError(path, err)
	}
	real := filepath.Join(parent, filepath.Base(path))
	if !d.inside(real) {
		return "", invalid("path %s leads to %s, outside the kubelet directory %s", path, real, d.kubeletDir)
	}
	if link, err := isLink(real); err != nil {
		return "", pathError(path, err)
	} else if link {
		return "", invalid("path %s is a symbolic link", path)
	}
	return real, nil
}

// pathError is the error about a path that cannot be followed: of the request, or
// of the machine.
func pathError(path string, err error) error {
	for _, machine := range []error{unix.EIO, unix.ESTALE, unix.ENOTCONN, unix.EACCES, unix.ENOMEM, unix.EINTR} {
		if errors.Is(err, machine) {
			return fmt.Errorf("path %s: %w", path, err)
		}
	}
	return invalid("path %s: %v", path, err)
}

// isLink tells whether a path whose parent is free of symbolic links is one. The
// kernel answers without asking the file system that is mounted there; if it does
// ask it, and fails, then the path is no link: nothing can be mounted on one.
func isLink(path string) (bool, error) {
	_, err := os.Readlink(path)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, fs.ErrNotExist):
		return false, nil
	}
	if m, failed := filesystem.MountAt(path); failed != nil || m == nil {
		return false, errors.Join(err, failed)
	}
	return false, nil
}

// resolve follows the symbolic links in the part of a path that exists.
func resolve(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if !errors.Is(err, fs.ErrNotExist) || path == "/" {
		return real, err
	}
	if _, err := os.Lstat(path); err == nil {
		return "", errors.New("it contains a dangling symbolic link")
	}
	parent, err := resolve(filepath.Dir(path))
	return filepath.Join(parent, filepath.Base(path)), err
}

// blockFile is where a block volume's device is bound in its staging
// directory. The volume's id in the name lets the mount table tell for ever
// which volume is staged, whatever device number it gets.
func blockFile(staging string, i handle.ID) string {
	return filepath.Join(staging, i.String())
}

// mountOf returns the mount of a volume that a staging or publish path stands
// for, or nil. It does not ask the file system that is mounted there.
func mountOf(i handle.ID, path string) (*mountinfo.Info, error) {
	if !filepath.IsAbs(path) {
		return nil, nil
	}
	real, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err == nil {
		var link bool
		real = filepath.Join(real, filepath.Base(path))
		if link, err = isLink(real); link {
			real, err = filepath.EvalSymlinks(real)
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return nil, nil
	case err != nil:
		return nil, pathError(path, err)
	}
	m, err := filesystem.MountAt(real)
	if m != nil || err != nil {
		return m, err
	}
	return filesystem.MountAt(blockFile(real, i))
}
