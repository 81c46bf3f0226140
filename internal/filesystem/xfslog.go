package filesystem

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// The log of xfs is a ring of blocks of 512 bytes. A record is a header and the
// data that it describes. Each block begins with the number of the cycle in which
// it was written; in a header the number follows the magic number. So the newest
// record ends where the cycle number falls. The format is that of the kernel's
// fs/xfs/libxfs/xfs_log_format.h.
const (
	xfsBlock       = 512
	xfsRecordMagic = 0xfeedbabe
	xfsHeaderData  = 32 << 10  // bytes of a record that one header block describes
	xfsMaxRecord   = 256 << 10 // bytes

	// The kernel writes several records at a time, so blocks may be missing up to
	// this distance before the end, in blocks.
	xfsInFlight = 8 * xfsMaxRecord / xfsBlock
	// A freeze empties the log and leaves a few records about the superblock at its
	// end, in at most this number of blocks.
	xfsMaxCover = 64

	xfsTransMagic = 0x5452414e // "TRAN": the header of a transaction
	xfsItemBuffer = 0x123c     // a change of a buffer
	xfsOpHeader   = 12
	xfsOpStart    = 1 << 0
	xfsOpCommit   = 1 << 1
	xfsOpUnmount  = 1 << 5
	xfsVersion2   = 1 << 1
	xfsMaxLogSize = 1 << 31 // bytes
)

// xfsLog is the log of the xfs on r.
type xfsLog struct {
	r      io.ReaderAt
	start  int64 // in bytes from the beginning of the device
	blocks int64 // length, in blocks
}

// xfsRecord is a record of the log, as its header describes it.
type xfsRecord struct {
	at, header, data int64  // first block, length of the header, length of the data, in blocks
	cycle            uint32 // in which the record was written
	tailCycle        uint32 // cycle of the block tail
	tail             int64  // the block from which a mount would replay
	ops              uint32 // number of operations
	head             []byte // first block of the header
}

// readXFSLog finds the log by the superblock on r. Errors: errNoSuperblock,
// ErrContent.
func readXFSLog(r io.ReaderAt) (l xfsLog, err error) {
	sb := make([]byte, superLen)
	if _, err := r.ReadAt(sb, 0); err != nil {
		return l, err
	}
	if !bytes.HasPrefix(sb, []byte("XFSB")) {
		return l, errNoSuperblock
	}
	big := binary.BigEndian
	blockSize, logStart := int64(big.Uint32(sb[4:])), big.Uint64(sb[48:])
	agBlocks, logBlocks, agBits := uint64(big.Uint32(sb[84:])), int64(big.Uint32(sb[96:])), sb[124]
	if logStart == 0 {
		return l, fmt.Errorf("%w: its log is on another device", ErrContent)
	}
	if blockSize < xfsBlock || blockSize > 64<<10 || blockSize&(blockSize-1) != 0 || agBits > 31 ||
		logBlocks == 0 || logBlocks*blockSize > xfsMaxLogSize {
		return l, fmt.Errorf("%w: its superblock is invalid", ErrContent)
	}
	at := logStart>>agBits*agBlocks + logStart&(1<<agBits-1)
	if at > (1<<62)/uint64(blockSize) {
		return l, fmt.Errorf("%w: its superblock is invalid", ErrContent)
	}
	return xfsLog{r: r, start: int64(at) * blockSize, blocks: logBlocks * blockSize / xfsBlock}, nil
}

// read returns n blocks from block at on. After the end of the log it continues at
// the beginning.
func (l xfsLog) read(at, n int64) ([]byte, error) {
	out := make([]byte, n*xfsBlock)
	first := min(n, l.blocks-at)
	if _, err := l.r.ReadAt(out[:first*xfsBlock], l.start+at*xfsBlock); err != nil {
		return nil, err
	}
	if first < n {
		if _, err := l.r.ReadAt(out[first*xfsBlock:], l.start); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// xfsCycle returns the cycle in which a block was written, and whether the block
// begins a record.
func xfsCycle(block []byte) (cycle uint32, header bool) {
	if first := binary.BigEndian.Uint32(block); first != xfsRecordMagic {
		return first, false
	}
	return binary.BigEndian.Uint32(block[4:]), true
}

func (l xfsLog) cycle(at int64) (uint32, error) {
	b, err := l.read(at, 1)
	if err != nil {
		return 0, err
	}
	cycle, _ := xfsCycle(b)
	return cycle, nil
}

// end returns the block after the newest record, and the cycle of the record.
func (l xfsLog) end() (at int64, cycle uint32, err error) {
	if cycle, err = l.cycle(0); err != nil {
		return 0, 0, err
	}
	low, high := int64(1), l.blocks // the first block of an older cycle lies between them, both included
	for low < high {
		middle := (low + high) / 2
		c, err := l.cycle(middle)
		if err != nil {
			return 0, 0, err
		}
		if c == cycle {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low % l.blocks, cycle, nil
}

// clean reports whether nothing in the log must be replayed: it ends with an
// unmount record, or with the records that a freeze leaves.
func (l xfsLog) clean() (bool, error) {
	end, cycle, err := l.end()
	if err != nil {
		return false, err
	}
	last, err := l.last(end, cycle)
	if last == nil || err != nil {
		return false, err
	}
	body, err := l.body(last)
	if body == nil || err != nil {
		return false, err
	}
	if last.ops == 1 && len(body) >= xfsOpHeader && body[9]&xfsOpUnmount != 0 {
		return true, nil
	}
	return l.covered(last, end)
}

// last returns the record that ends at block end; nil if there is none, or if
// some of the blocks before end were not written.
func (l xfsLog) last(end int64, cycle uint32) (*xfsRecord, error) {
	n := min(int64(xfsInFlight), l.blocks)
	before, err := l.read((end-n+l.blocks)%l.blocks, n)
	if err != nil {
		return nil, err
	}
	var found *xfsRecord
	for i := n - 1; i >= 0; i-- {
		at, want := end-n+i, cycle
		if at < 0 {
			if at += l.blocks; end > 0 { // written before the ring wrapped around
				want--
			}
		}
		block := before[i*xfsBlock:][:xfsBlock]
		has, header := xfsCycle(block)
		if has != want {
			return nil, nil
		}
		if header && found == nil {
			if found = parseXFSRecord(at, block); found == nil || (at+found.header+found.data)%l.blocks != end {
				return nil, nil
			}
		}
	}
	return found, nil
}

// parseXFSRecord parses the header of a record at block at; nil if it is invalid.
func parseXFSRecord(at int64, b []byte) *xfsRecord {
	big := binary.BigEndian
	length, iclog := int64(big.Uint32(b[12:])), int64(big.Uint32(b[320:]))
	r := &xfsRecord{
		at: at, header: 1, data: (length + xfsBlock - 1) / xfsBlock, cycle: big.Uint32(b[4:]),
		tailCycle: big.Uint32(b[24:]), tail: int64(big.Uint32(b[28:])), ops: big.Uint32(b[40:]), head: b,
	}
	if big.Uint32(b[8:])&xfsVersion2 != 0 && iclog > xfsHeaderData {
		r.header = (iclog + xfsHeaderData - 1) / xfsHeaderData
	}
	if length > xfsMaxRecord || iclog > xfsMaxRecord || big.Uint32(b[16:]) != r.cycle || int64(big.Uint32(b[20:])) != at {
		return nil
	}
	return r
}

// body returns the data of a record; nil if the record is empty or longer than the
// records that clean looks for. The cycle number has replaced the first word of
// each block, and the header has the words.
func (l xfsLog) body(r *xfsRecord) ([]byte, error) {
	if r.data > xfsHeaderData/xfsBlock || r.data == 0 {
		return nil, nil
	}
	b, err := l.read((r.at+r.header)%l.blocks, r.data)
	if err != nil {
		return nil, err
	}
	for i := range r.data {
		copy(b[i*xfsBlock:], r.head[44+4*i:][:4])
	}
	return b, nil
}

// covered reports whether all records that a mount would replay, from the tail to
// the end, change only the superblock. A freeze writes everything else back, and
// then writes two such records to show this.
func (l xfsLog) covered(last *xfsRecord, end int64) (bool, error) {
	at, cycle := last.tail, last.tailCycle
	if span := (end - at + l.blocks) % l.blocks; at >= l.blocks || span == 0 || span > xfsMaxCover {
		return false, nil
	}
	for at != end {
		head, err := l.read(at, 1)
		if err != nil {
			return false, err
		}
		if c, header := xfsCycle(head); !header || c != cycle {
			return false, nil
		}
		r := parseXFSRecord(at, head)
		if r == nil || (end-at+l.blocks)%l.blocks < r.header+r.data {
			return false, nil
		}
		body, err := l.body(r)
		if body == nil || err != nil || !superblockOnly(body, r.ops) {
			return false, err
		}
		if at += r.header + r.data; at >= l.blocks {
			at, cycle = at-l.blocks, cycle+1
		}
	}
	return true, nil
}

// superblockOnly reports whether the operations of a record are complete
// transactions that change only the buffer of block 0. The items are in the byte
// order of the processor that wrote them.
func superblockOnly(body []byte, ops uint32) bool {
	native := binary.NativeEndian
	regions := uint16(0) // regions of the current item that are still to come
	for range ops {
		if len(body) < xfsOpHeader {
			return false
		}
		length, flags := int64(binary.BigEndian.Uint32(body[4:])), body[9]
		body = body[xfsOpHeader:]
		if flags&^(xfsOpStart|xfsOpCommit) != 0 || length > int64(len(body)) {
			return false
		}
		region := body[:length]
		body = body[length:]
		switch {
		case length == 0 && regions == 0:
		case flags != 0:
			return false
		case regions > 0:
			regions--
		case length == 16 && native.Uint32(region) == xfsTransMagic:
		case length >= 16 && native.Uint16(region) == xfsItemBuffer && native.Uint16(region[2:]) > 0 && native.Uint64(region[8:]) == 0:
			regions = native.Uint16(region[2:]) - 1
		default:
			return false
		}
	}
	return regions == 0
}
