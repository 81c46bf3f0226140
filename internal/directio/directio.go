// Package directio has the memory that I/O past the page cache (O_DIRECT) needs.
package directio

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Buffer returns n bytes, all zero, that O_DIRECT accepts as the source and the
// destination of a transfer: the mapping begins at a page. The caller owns the
// buffer until it calls free, once; nothing may use the buffer afterwards.
func Buffer(n size.Bytes) (buf []byte, free func(), err error) {
	buf, err = unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, nil, fmt.Errorf("map %v of memory: %w", n, err)
	}
	return buf, func() { _ = unix.Munmap(buf) }, nil
}
