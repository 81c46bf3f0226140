package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// tree has files by their paths, which have no slash at the beginning or end.
type tree map[string]file

// file is a file of a tree. All files have the same owner and time.
type file struct {
	mode    fs.FileMode // type and permissions
	content []byte      // only for a regular file
	link    string      // the target of a symbolic link
}

// add adds a file and the directories above it.
func (t tree) add(name string, f file) {
	t[name] = f
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if _, ok := t[dir]; !ok {
			t[dir] = file{mode: fs.ModeDir | 0o755}
		}
	}
}

// follow returns the path to which name leads through symbolic links, and all
// links on the way.
func (t tree) follow(name string) (target string, links []string, err error) {
	const most = 40 // as in the kernel
	for range most {
		f, ok := t[name]
		if !ok {
			return "", nil, fmt.Errorf("%w: %s", fs.ErrNotExist, name)
		}
		if f.mode.Type() != fs.ModeSymlink {
			return name, links, nil
		}
		links = append(links, name)
		if path.IsAbs(f.link) {
			name = merged(f.link)
		} else {
			name = merged(path.Join(path.Dir(name), f.link))
		}
	}
	return "", nil, fmt.Errorf("%s: too many symbolic links", name)
}

// merged returns the path to which a path leads on a system whose /bin, /sbin
// and /lib… are links into /usr. Debian's packages still use the old paths.
func merged(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	top, _, _ := strings.Cut(name, "/")
	switch top {
	case "bin", "sbin", "lib", "lib64":
		return "usr/" + name
	}
	return name
}

// writeTar writes the tree as a tar archive. Its bytes depend only on the tree.
func (t tree) writeTar(w io.Writer) error {
	out := tar.NewWriter(w)
	for _, name := range t.names() {
		f := t[name]
		h := &tar.Header{Name: name, Mode: int64(f.mode.Perm()), ModTime: epoch, Format: tar.FormatUSTAR}
		switch f.mode.Type() {
		case fs.ModeDir:
			h.Typeflag, h.Name = tar.TypeDir, name+"/"
			if f.mode&fs.ModeSticky != 0 {
				h.Mode |= 0o1000
			}
		case fs.ModeSymlink:
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		default:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(f.content))
		}
		if err := out.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if _, err := out.Write(f.content); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return out.Close()
}

// writeDir writes the tree below dir.
func (t tree) writeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range t.names() {
		f, at := t[name], filepath.Join(dir, name)
		var err error
		switch f.mode.Type() {
		case fs.ModeDir:
			err = errors.Join(os.MkdirAll(at, 0o755), os.Chmod(at, f.mode.Perm()|f.mode&fs.ModeSticky))
		case fs.ModeSymlink:
			if err = os.Symlink(f.link, at); errors.Is(err, fs.ErrExist) {
				err = errors.Join(os.Remove(at), os.Symlink(f.link, at))
			}
		default:
			err = os.WriteFile(at, f.content, f.mode.Perm())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// names returns the paths in order, directories before their content.
func (t tree) names() []string {
	var names []string
	for name := range t {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// epoch is the time of every file in the image. A real time would differ in
// each build.
var epoch = time.Unix(0, 0).UTC()
