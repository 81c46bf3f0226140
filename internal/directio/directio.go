// Package directio allocates memory for I/O past the page cache (O_DIRECT).
package directio

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Buffer returns n zero bytes that begin at a page, so that O_DIRECT accepts them as
// the source or destination of a transfer. The caller must call free once, and must
// not use the buffer afterwards.
func Buffer(n size.Bytes) (buf []byte, free func(), err error) {
	buf, err = unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, nil, fmt.Errorf("map %v of memory: %w", n, err)
	}
	return buf, func() { _ = unix.Munmap(buf) }, nil
}
