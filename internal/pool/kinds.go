package pool

import (
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The kind of a disk is the size of its logical blocks: 512 or 4096 bytes. A device-mapper
// device has the largest block size of the devices below it, and a file system cannot be used
// with larger blocks than it was made with. So stacked devices, and all copies of a volume's
// content, lie on disks of one kind. A new pool has disks of one kind. In a group that lvm2
// has mixed, the driver treats the disks of each kind separately.

// ofOneKind selects the devices of a new group that have the most frequent block size, or the
// first one's in a tie. It returns the other devices with the reason.
func ofOneKind(devices []string) (kept []string, refused []LeftOut, err error) {
	count, blocks := map[size.Bytes]int{}, make([]size.Bytes, len(devices))
	for i, d := range devices {
		if blocks[i], err = lvm2.BlockSize(d); err != nil {
			return nil, nil, err
		}
		count[blocks[i]]++
	}
	var kind size.Bytes
	for _, b := range blocks {
		if kind == 0 || count[b] > count[kind] {
			kind = b
		}
	}
	for i, d := range devices {
		if blocks[i] == kind {
			kept = append(kept, d)
		} else {
			refused = append(refused, otherKind(d, fmt.Errorf("%w: %d bytes, but the pool's disks have %d", lvm2.ErrBlockSize, uint64(blocks[i]), uint64(kind))))
		}
	}
	return kept, refused, nil
}

// otherKind describes a device whose block size differs from the pool's disks.
func otherKind(device string, why error) LeftOut {
	return LeftOut{device, why.Error() + "; no file system could move between them, so use it for another pool", true, false}
}
