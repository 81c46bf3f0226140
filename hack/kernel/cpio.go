package main

import (
	"bytes"
	"fmt"
	"os"
	"path"
)

// cpio is an archive in the format of the kernel's first root file system
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type cpio struct {
	buf   bytes.Buffer
	inode int
	dirs  map[string]bool
}

const (
	cpioDir  = 0o040755
	cpioFile = 0o100755
)

// add adds a file and the directories above it.
func (c *cpio) add(name string, data []byte) {
	c.addDirs(path.Dir(name))
	c.entry(name, cpioFile, data)
}

func (c *cpio) addFile(name, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	c.add(name, data)
	return nil
}

func (c *cpio) addDirs(dir string) {
	if dir == "." || dir == "/" || c.dirs[dir] {
		return
	}
	c.addDirs(path.Dir(dir))
	if c.dirs == nil {
		c.dirs = map[string]bool{}
	}
	c.dirs[dir] = true
	c.entry(dir, cpioDir, nil)
}

func (c *cpio) entry(name string, mode int, data []byte) {
	c.inode++
	const nlink = 1
	fmt.Fprintf(&c.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, mode, 0, 0, nlink, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	c.pad()
	c.buf.Write(data)
	c.pad()
}

func (c *cpio) pad() {
	for c.buf.Len()%4 != 0 {
		c.buf.WriteByte(0)
	}
}

// bytes ends the archive and returns it.
func (c *cpio) bytes() []byte {
	c.entry("TRAILER!!!", 0, nil)
	return c.buf.Bytes()
}
