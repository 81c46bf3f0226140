//go:build kernel

package interop

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// All reads and writes bypass the page cache, because cached data of hidden
// devices is out of date as soon as the volume is written.

// buffers holds memory that O_DIRECT accepts.
var buffers = sync.Pool{New: func() any {
	b, err := unix.Mmap(-1, 0, len(buffer{}), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		panic(err)
	}
	return (*buffer)(b)
}}

type buffer [4 << 20]byte

// block is the unit in which tests write.
const block = 64 * size.KiB

// write fills one block of a device with a byte.
func (g *group) write(path string, number int, fill byte) {
	g.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	g.ok(err)
	defer f.Close()
	buffer := buffers.Get().(*buffer)
	defer buffers.Put(buffer)
	b := buffer[:block]
	copy(b, bytes.Repeat([]byte{fill}, len(b)))
	_, err = f.WriteAt(b, int64(number)*int64(block))
	g.ok(err)
	g.ok(f.Sync())
}

// first returns the first byte of each of a device's first n blocks. It checks
// that each block is filled with one byte.
func (g *group) first(path string, n int) string {
	g.Helper()
	var out []byte
	g.blocks(path, func(b []byte) bool {
		if c := bytes.TrimLeft(b, string(b[:1])); len(c) > 0 {
			g.Errorf("%s: block %d begins with %q and ends with %q", path, len(out), b[0], c[len(c)-1])
		}
		out = append(out, max(b[0], '.')) // zeroes print as dots
		return len(out) < n
	})
	return string(out)
}

// digest returns a checksum of all of a device's bytes.
func (g *group) digest(path string) [32]byte {
	g.Helper()
	sum := sha256.New()
	g.blocks(path, func(b []byte) bool { sum.Write(b); return true })
	return [32]byte(sum.Sum(nil))
}

func (g *group) blocks(path string, visit func([]byte) bool) {
	g.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	g.ok(err)
	defer f.Close()
	buffer := buffers.Get().(*buffer)
	defer buffers.Put(buffer)
	for {
		n, err := io.ReadFull(f, buffer[:])
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			g.Fatalf("reading %s: %v", path, err)
		}
		for b := buffer[:n]; len(b) > 0; b = b[min(len(b), int(block)):] {
			if !visit(b[:min(len(b), int(block))]) {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// restored returns the first n blocks of a snapshot, read from a volume that is
// restored from it.
func (g *group) restored(snapshot string, n int) string {
	g.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := g.pool.Snapshot(ctx, snapshot)
	g.ok(err)
	spec := pool.VolumeSpec{Name: "check-" + snapshot, Mode: pool.Block, Source: pool.Source{Kind: pool.FromSnapshot, LV: snapshot}}
	if o, err := g.pool.Volume(ctx, s.Volume); err != nil || o.Mode == pool.Filesystem {
		// A file system volume may have blocks that were never wiped, so no
		// block volume may be made from it.
		spec.Mode, spec.FSType = pool.Filesystem, "ext4"
	}
	v, err := g.pool.CreateVolume(ctx, spec)
	g.ok(err)
	path, err := g.pool.Activate(ctx, v.LV)
	g.ok(err)
	content := g.first(path, n)
	g.ok(g.pool.Deactivate(ctx, v.LV))
	g.ok(g.pool.DeleteVolume(ctx, v.LV))
	return content
}
