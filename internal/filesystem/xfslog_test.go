package filesystem

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// xfsImage is an xfs that has only a superblock and a log.
type xfsImage struct {
	image  []byte
	blocks int
}

const xfsLogStart = 16 // file system blocks

func newXFS(blocks int) *xfsImage {
	x := &xfsImage{image: make([]byte, xfsLogStart*4096+blocks*xfsBlock), blocks: blocks}
	big := binary.BigEndian
	copy(x.image, "XFSB")
	big.PutUint32(x.image[4:], 4096)
	big.PutUint64(x.image[48:], xfsLogStart)
	big.PutUint32(x.image[84:], 1024) // blocks of an allocation group
	big.PutUint32(x.image[96:], uint32(blocks/8))
	x.image[124] = 10
	return x
}

func (x *xfsImage) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(x.image).ReadAt(p, off)
}

func (x *xfsImage) log() []byte { return x.image[xfsLogStart*4096:] }

func (x *xfsImage) block(at int) []byte { return x.log()[at%x.blocks*xfsBlock:][:xfsBlock] }

// age fills the log with blocks of the given cycle.
func (x *xfsImage) age(cycle uint32) {
	for i := range x.blocks {
		binary.BigEndian.PutUint32(x.block(i), cycle)
	}
}

// operation is one operation of a record.
type operation struct {
	flags  byte
	region []byte
}

// write writes a record at a block and returns the block after it.
func (x *xfsImage) write(at int, cycle uint32, tail int, ops []operation) int {
	big := binary.BigEndian
	var body []byte
	for _, op := range ops {
		header := make([]byte, xfsOpHeader)
		big.PutUint32(header[4:], uint32(len(op.region)))
		header[9] = op.flags
		body = append(append(body, header...), op.region...)
	}
	head := x.block(at)
	clear(head)
	tailCycle := cycle
	if tail > at {
		tailCycle--
	}
	for i, v := range map[int]uint32{0: xfsRecordMagic, 4: cycle, 8: 2, 12: uint32(len(body)), 16: cycle, 20: uint32(at), 24: tailCycle, 28: uint32(tail), 40: uint32(len(ops)), 320: xfsHeaderData} {
		big.PutUint32(head[i:], v)
	}
	for i := 0; len(body) > 0; i++ {
		if at++; at == x.blocks {
			at, cycle = 0, cycle+1
		}
		b := x.block(at)
		clear(b)
		body = body[copy(b, body):]
		copy(head[44+4*i:], b[:4])
		big.PutUint32(b, cycle)
	}
	return (at + 1) % x.blocks
}

// change is a transaction that changes the buffer of a block.
func change(kind uint16, block uint64) []operation {
	native := binary.NativeEndian
	trans, item := make([]byte, 16), make([]byte, 24)
	native.PutUint32(trans, xfsTransMagic)
	native.PutUint16(item, kind)
	native.PutUint16(item[2:], 2) // the item itself and the data
	native.PutUint64(item[8:], block)
	return []operation{{xfsOpStart, nil}, {0, trans}, {0, item}, {0, make([]byte, 384)}, {xfsOpCommit, nil}}
}

func superChange() []operation { return change(xfsItemBuffer, 0) }

// A log is clean only if it ends with an unmount record or as a freeze leaves
// it; in doubt it is unclean.
func TestXFSLog_clean(t *testing.T) {
	const blocks = 64
	unmount := []operation{{xfsOpUnmount, make([]byte, 8)}}
	other, inode := change(xfsItemBuffer, 8), change(0x123b, 0)
	for name, c := range map[string]struct {
		make func(x *xfsImage)
		want bool
	}{
		"just made":         {func(x *xfsImage) { x.write(0, 1, 0, unmount) }, true},
		"unmounted":         {func(x *xfsImage) { x.age(4); x.age2(5, 20); x.write(20, 5, 20, unmount) }, true},
		"unmounted, at end": {func(x *xfsImage) { x.age(5); x.write(62, 5, 62, unmount) }, true},
		"unmounted, around": {func(x *xfsImage) { x.age(4); x.age2(5, 63); x.write(63, 5, 63, unmount) }, true},
		"frozen":            {func(x *xfsImage) { x.age(4); x.write(x.write(0, 5, 0, superChange()), 5, 0, superChange()) }, true},
		"frozen, around": {func(x *xfsImage) {
			x.age(4)
			x.age2(5, 61)
			x.write(x.write(61, 5, 61, superChange()), 5, 61, superChange())
		}, true},
		"in use":                 {func(x *xfsImage) { x.age(4); x.write(x.write(0, 5, 0, other), 5, 0, superChange()) }, false},
		"in use, inode":          {func(x *xfsImage) { x.age(4); x.write(0, 5, 0, inode) }, false},
		"in use since unmounted": {func(x *xfsImage) { x.age(4); x.write(x.write(0, 5, 0, unmount), 5, 2, other) }, false},
		"tail far away":          {func(x *xfsImage) { x.age(4); x.write(x.write(0, 5, 0, superChange()), 5, 40, superChange()) }, false},
		"hole": {func(x *xfsImage) {
			x.age(4)
			x.write(x.write(10, 5, 10, superChange()), 5, 10, superChange())
		}, false},
		"torn": {func(x *xfsImage) {
			x.age(4)
			end := x.write(0, 5, 0, superChange())
			binary.BigEndian.PutUint32(x.block(end-1), 4)
		}, false},
		"no records":      {func(x *xfsImage) { x.age(4) }, false},
		"nothing":         {func(*xfsImage) {}, false},
		"continued":       {func(x *xfsImage) { x.age(4); ops := superChange(); ops[3].flags = 4; x.write(0, 5, 0, ops) }, false},
		"item is cut off": {func(x *xfsImage) { x.age(4); x.write(0, 5, 0, superChange()[:3]) }, false},
		"length is a lie": {func(x *xfsImage) { x.age(4); x.write(0, 5, 0, unmount); x.block(0)[13] = 0xff }, false},
		"number is a lie": {func(x *xfsImage) { x.age(4); x.write(0, 5, 0, superChange()); x.block(0)[43] = 0xff }, false},
		"place is a lie":  {func(x *xfsImage) { x.age(4); x.write(0, 5, 0, unmount); x.block(0)[23] = 7 }, false},
		"tail is a lie":   {func(x *xfsImage) { x.age(4); x.write(0, 5, 0, superChange()); x.block(0)[28] = 0xff }, false},
	} {
		x := newXFS(blocks)
		c.make(x)
		if got, err := clean(x, XFS); got != c.want || err != nil {
			t.Errorf("%s: clean %t, %v", name, got, err)
		}
	}
}

// age2 sets the cycle of the first n blocks.
func (x *xfsImage) age2(cycle uint32, n int) {
	for i := range n {
		binary.BigEndian.PutUint32(x.block(i), cycle)
	}
}
