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

// inside reports whether a path is below the kubelet directory. The path must be
// free of symbolic links.
func (d *Driver) inside(path string) bool {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(d.kubeletDir, "/")+"/")
	return ok && rest != ""
}

// ownPath checks a staging or target path and returns it without symbolic links.
// The driver mounts and removes files there as root, so a symbolic link must not
// lead it out of the kubelet directory. ownPath does not access the file system
// that is mounted at the path: a file system that no longer answers must still be
// unmounted. Errors: INVALID_ARGUMENT, and errors of the machine such as EIO.
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

// pathError returns the error about a path that cannot be followed. Errors of the
// machine stay as they are; all others are INVALID_ARGUMENT.
func pathError(path string, err error) error {
	for _, machine := range []error{unix.EIO, unix.ESTALE, unix.ENOTCONN, unix.EACCES, unix.ENOMEM, unix.EINTR} {
		if errors.Is(err, machine) {
			return fmt.Errorf("path %s: %w", path, err)
		}
	}
	return invalid("path %s: %v", path, err)
}

// isLink reports whether a path is a symbolic link. The parent directory must be
// free of symbolic links. The kernel usually answers without asking the file
// system that is mounted at the path. If the kernel asks it and fails, the path is
// not a link, because nothing can be mounted on a link.
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

// blockFile returns the path of the file in the staging directory that a block
// volume's device is bound to. The file is named after the volume's id, so the
// mount table shows which volume is staged, even if its device number changes.
func blockFile(staging string, i handle.ID) string {
	return filepath.Join(staging, i.String())
}

// mountOf returns the mount of a volume at a staging or publish path; nil if there
// is none. It does not access the file system that is mounted there. Errors: as
// pathError.
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
