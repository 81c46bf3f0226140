//go:build kernel

package flush

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// backend is the inside of a disk. A disk calls its methods one at a time, in
// the order in which the kernel sent the requests.
type backend interface {
	read(p []byte, at int64) error
	// write may keep p.
	write(p []byte, at int64, fua bool) error
	flush() error
	discard(at, n int64) error
}

// disk is a block device of the kernel that this process serves: a network
// block device on a socket pair. It tells the kernel that it has a volatile
// cache, and knows FUA and discards.
type disk struct {
	path string
	size size.Bytes
	file *os.File
	done sync.WaitGroup

	mu sync.Mutex
	in backend
}

// The ioctls, flags and requests of <linux/nbd.h>.
const (
	nbdSetSock    = 0xab00
	nbdSetBlkSize = 0xab01
	nbdDoIt       = 0xab03
	nbdClearSock  = 0xab04
	nbdSetBlocks  = 0xab07
	nbdDisconnect = 0xab08
	nbdSetFlags   = 0xab0a

	nbdHasFlags  = 1 << 0
	nbdSendFlush = 1 << 2
	nbdSendFUA   = 1 << 3
	nbdSendTrim  = 1 << 5

	nbdRead    = 0
	nbdWrite   = 1
	nbdDisc    = 2
	nbdFlush   = 3
	nbdTrim    = 4
	nbdFUA     = 1 << 16
	nbdRequest = 0x25609513
	nbdReply   = 0x67446698
)

// newDisk makes /dev/nbdN, which the end of the test removes.
func newDisk(t *testing.T, n int, length size.Bytes, in backend) *disk {
	t.Helper()
	if _, err := os.Stat("/dev/nbd0"); err != nil {
		if out, err := exec.Command("busybox", "modprobe", "nbd").CombinedOutput(); err != nil {
			t.Fatalf("loading nbd: %v\n%s", err, out)
		}
	}
	d := &disk{path: fmt.Sprintf("/dev/nbd%d", n), size: length, in: in}
	err := d.connect()
	if err != nil {
		t.Fatalf("connecting %s: %v", d.path, err)
	}
	t.Cleanup(d.disconnect)
	return d
}

func (d *disk) connect() (err error) {
	if d.file, err = os.OpenFile(d.path, os.O_RDWR, 0); err != nil {
		return err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	kernel, ours := fds[0], os.NewFile(uintptr(fds[1]), d.path)
	conn, err := net.FileConn(ours)
	if err := errors.Join(err, ours.Close()); err != nil {
		return err
	}
	fd := int(d.file.Fd())
	for _, c := range [][2]int{
		{nbdClearSock, 0}, {nbdSetBlkSize, size.SectorBytes}, {nbdSetBlocks, int(d.size.Sectors())},
		{nbdSetFlags, nbdHasFlags | nbdSendFlush | nbdSendFUA | nbdSendTrim}, {nbdSetSock, kernel},
	} {
		if err := unix.IoctlSetInt(fd, uint(c[0]), c[1]); err != nil {
			return fmt.Errorf("ioctl %#x: %w", c[0], err)
		}
	}
	d.done.Go(func() { d.serve(conn) })
	d.done.Go(func() {
		_ = unix.IoctlSetInt(fd, nbdDoIt, 0) // it ends when the disk is disconnected
		unix.Close(kernel)
	})
	return d.await()
}

// await waits until the kernel serves the device.
func (d *disk) await() error {
	dir := "/sys/block/" + d.path[len("/dev/"):]
	for range 1000 {
		length, _ := os.ReadFile(dir + "/size")
		cache, _ := os.ReadFile(dir + "/queue/write_cache")
		if string(length) == fmt.Sprintf("%d\n", uint64(d.size.Sectors())) && string(cache) == "write back\n" {
			return nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	return errors.New("the kernel does not serve the disk, or does not see its cache")
}

func (d *disk) disconnect() {
	fd := int(d.file.Fd())
	_ = unix.IoctlSetInt(fd, nbdDisconnect, 0)
	_ = unix.IoctlSetInt(fd, nbdClearSock, 0)
	d.done.Wait()
	d.file.Close()
}

// replace gives the disk another inside. Nothing may use the disk meanwhile.
// The kernel forgets what it has read.
func (d *disk) replace(in backend) error {
	d.mu.Lock()
	d.in = in
	d.mu.Unlock()
	return unix.IoctlSetInt(int(d.file.Fd()), unix.BLKFLSBUF, 0)
}

// serve answers the kernel's requests until the disk is disconnected.
func (d *disk) serve(conn net.Conn) {
	defer conn.Close()
	from := bufio.NewReaderSize(conn, 64<<10)
	var head [28]byte
	answer := make([]byte, 16, 16+size.MiB)
	for {
		if _, err := io.ReadFull(from, head[:]); err != nil || binary.BigEndian.Uint32(head[:]) != nbdRequest {
			return
		}
		kind := binary.BigEndian.Uint32(head[4:])
		at, n := int64(binary.BigEndian.Uint64(head[16:])), int64(binary.BigEndian.Uint32(head[24:]))
		binary.BigEndian.PutUint32(answer, nbdReply)
		binary.BigEndian.PutUint32(answer[4:], 0)
		copy(answer[8:16], head[8:16])
		answer = answer[:16]
		var data []byte
		switch kind &^ nbdFUA {
		case nbdDisc:
			return
		case nbdWrite:
			data = make([]byte, n)
			if _, err := io.ReadFull(from, data); err != nil {
				return
			}
		case nbdRead:
			answer = append(answer, make([]byte, n)...)
			data = answer[16:]
		}
		if err := d.do(kind, data, at, n); err != nil {
			binary.BigEndian.PutUint32(answer[4:], uint32(unix.EIO))
			answer = answer[:16]
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

func (d *disk) do(kind uint32, data []byte, at, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch kind &^ nbdFUA {
	case nbdRead:
		return d.in.read(data, at)
	case nbdWrite:
		return d.in.write(data, at, kind&nbdFUA != 0)
	case nbdFlush:
		return d.in.flush()
	case nbdTrim:
		return d.in.discard(at, n)
	}
	return unix.EINVAL
}
