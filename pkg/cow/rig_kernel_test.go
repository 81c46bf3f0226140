//go:build kernel

package cow

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/directio"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// history consists of the device-mapper devices of an origin with one snapshot.
type history struct {
	t      *testing.T
	dm     *dm.Client
	chunk  size.Bytes
	length size.Bytes // of the origin
	buf    []byte     // for direct transfers
}

// reloaded creates the snapshot's device again, read-only and with another length
// of its store. It returns the error of loading the snapshot's table.
func (h *history) reloaded(store size.Bytes) error {
	h.t.Helper()
	h.remove(originName, snapName, cowName)
	cow := h.load(cowName, store, true, dm.Linear{Device: disk(h.t, 1)})
	h.resume(cowName)
	real, err := h.dm.Info(realName)
	must(h.t, err)
	_, err = h.dm.Create(snapName, "")
	must(h.t, err)
	table := dm.Table{{Length: h.length.Sectors(), Target: h.snapshot(real.Device, cow)}}
	if err := h.dm.Load(snapName, table, true); err != nil {
		return err
	}
	h.resume(snapName)
	return nil
}

func (h *history) snapshot(real, cow dm.Device) dm.Target {
	return dm.Snapshot{Origin: real, COW: cow, Persistence: dm.Persistent, Chunk: h.chunk.Sectors()}
}

// load loads a table into a device, and creates the device if it does not exist.
func (h *history) load(name string, length size.Bytes, ro bool, target dm.Target) dm.Device {
	h.t.Helper()
	info, err := h.dm.Info(name)
	if errors.Is(err, dm.ErrNotFound) {
		info, err = h.dm.Create(name, "")
	}
	must(h.t, err)
	must(h.t, h.dm.Load(name, dm.Table{{Length: length.Sectors(), Target: target}}, ro))
	return info.Device
}

// resume makes the loaded tables live, and creates the devices' nodes.
func (h *history) resume(names ...string) {
	h.t.Helper()
	for _, name := range names {
		must(h.t, h.dm.Resume(name, dm.UdevPrimarySource))
		info, err := h.dm.Info(name)
		must(h.t, err)
		_, err = h.dm.EnsureNode(h.t.Context(), name, info.Device)
		must(h.t, err)
	}
}

func (h *history) remove(names ...string) {
	h.t.Helper()
	for _, name := range names {
		if err := h.dm.Remove(name, 0); !errors.Is(err, dm.ErrNotFound) {
			must(h.t, err)
			must(h.t, h.dm.RemoveNode(name))
		}
	}
}

func (h *history) status() dm.SnapshotStatus {
	h.t.Helper()
	all, err := h.dm.Status(snapName)
	must(h.t, err)
	return all[0].Status.(dm.SnapshotStatus)
}

// write writes to a device past the page cache.
func (h *history) write(name string, at size.Bytes, data []byte) {
	h.t.Helper()
	f, err := os.OpenFile(h.dm.Node(name), os.O_WRONLY|unix.O_DIRECT, 0)
	must(h.t, err)
	for len(data) > 0 {
		n := copy(h.buf, data)
		_, err := f.WriteAt(h.buf[:n], int64(at))
		must(h.t, err)
		data, at = data[n:], at+size.Bytes(n)
	}
	must(h.t, f.Close())
}

// read reads from a device past the page cache.
func (h *history) read(name string, at, length size.Bytes) (data []byte, err error) {
	h.t.Helper()
	f, err := os.OpenFile(h.dm.Node(name), os.O_RDONLY|unix.O_DIRECT, 0)
	must(h.t, err)
	defer f.Close()
	for length > 0 && err == nil {
		b := h.buf[:min(length, size.Bytes(len(h.buf)))]
		_, err = f.ReadAt(b, int64(at))
		data = append(data, b...)
		at, length = at+size.Bytes(len(b)), length-size.Bytes(len(b))
	}
	return data, err
}

// openStore opens the history's store until the end of the test.
func (h *history) openStore() *Store {
	h.t.Helper()
	s, err := Open(h.dm.Node(cowName))
	must(h.t, err)
	h.t.Cleanup(func() { s.Close() })
	return s
}

// overwrite writes a random sector of a chunk of the origin.
func (h *history) overwrite(random *rand.Rand, chunk uint64) {
	h.t.Helper()
	sector := size.Sectors(random.Uint64N(uint64(h.chunk.Sectors()))).Bytes()
	at := size.Bytes(chunk)*h.chunk + sector
	h.write(originName, at, other(at, size.SectorBytes))
}

// chunks returns n of the origin's chunks in a random order.
func (h *history) chunks(random *rand.Rand, n int) []uint64 {
	var list []uint64
	for _, i := range random.Perm(int(h.length / h.chunk))[:n] {
		list = append(list, uint64(i))
	}
	return list
}

// check compares a store with the changed chunks, in their order, and with the
// snapshot's status.
func (h *history) check(s *Store, changed []uint64) {
	h.t.Helper()
	list, err := collect(h.t.Context(), s)
	must(h.t, err)
	got := make([]uint64, len(list))
	for i, e := range list {
		got[i] = e.Origin
	}
	if !slices.Equal(got, changed) {
		h.t.Fatalf("exceptions for the chunks\n%v\nwere read, not for\n%v", got, changed)
	}
	n, status := len(changed), h.status()
	if used := UsedSectors(h.chunk, uint64(n)); used != status.Used {
		h.t.Fatalf("%d exceptions use %d sectors, status is %v", n, used, status)
	}
	if data := size.Sectors(n) * h.chunk.Sectors(); status.Used-status.Metadata != data {
		h.t.Fatalf("%d exceptions of %d sectors, status is %v", n, data, status)
	}
	if used, err := s.Used(h.t.Context()); err != nil || used != status.Used {
		h.t.Fatalf("store of %d exceptions uses %d sectors, %v; status is %v", n, used, err, status)
	}
}

// newHistory creates an origin with a snapshot. The origin has the given number of
// chunks and the content original. store is the length of the snapshot's store.
func newHistory(t *testing.T, chunk size.Bytes, chunks int, store size.Bytes) *history {
	t.Helper()
	c, err := dm.Open()
	must(t, err)
	buf, free, err := directio.Buffer(size.MiB)
	must(t, err)
	h := &history{t: t, dm: c, chunk: chunk, length: size.Bytes(chunks) * chunk, buf: buf}
	t.Cleanup(func() {
		h.remove(snapName, originName, cowName, realName)
		must(t, c.Close())
		free()
	})
	real := h.load(realName, h.length, false, dm.Linear{Device: disk(t, 0)})
	cow := h.load(cowName, store, false, dm.Linear{Device: disk(t, 1)})
	h.resume(realName, cowName)
	h.write(realName, 0, original(0, h.length))
	// The kernel needs zeroes only in the first bytes.
	h.write(cowName, 4096, original(0, min(store-4096, 4*size.MiB)))
	h.write(cowName, 0, make([]byte, 4096))
	if _, err := Open(h.dm.Node(cowName)); !errors.Is(err, ErrFresh) {
		t.Errorf("a zeroed store opens with %v", err)
	}
	h.load(originName, h.length, false, dm.SnapshotOrigin{Origin: real})
	h.load(snapName, h.length, false, h.snapshot(real, cow))
	h.resume(snapName, originName)
	return h
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func disk(t *testing.T, i int) dm.Device {
	t.Helper()
	disks := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")
	if i >= len(disks) || disks[i] == "" {
		t.Fatalf("the test needs %d scratch disks in DMSNAP_TEST_DISKS", i+1)
	}
	d, err := dm.DeviceOf(disks[i])
	must(t, err)
	return d
}

// original returns the origin's first content: every eight bytes hold their offset.
func original(at, length size.Bytes) []byte {
	b := make([]byte, 0, length)
	for i := range length / 8 {
		b = binary.LittleEndian.AppendUint64(b, 1<<40|uint64(at+8*i))
	}
	return b
}

// other returns the content that tests write later.
func other(at, length size.Bytes) []byte {
	b := original(at, length)
	for i := range b {
		b[i] ^= 0xff
	}
	return b
}

const (
	realName   = "cow-vol-real"
	cowName    = "cow-snap-cow"
	snapName   = "cow-snap"
	originName = "cow-vol"
)
