//go:build kernel

package cow

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/directio"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// history is an origin with one snapshot, as device-mapper devices.
type history struct {
	t      *testing.T
	dm     *dm.Client
	chunk  size.Bytes
	length size.Bytes // of the origin
	buf    []byte     // for direct transfers
}

const (
	realName   = "cow-vol-real"
	cowName    = "cow-snap-cow"
	snapName   = "cow-snap"
	originName = "cow-vol"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newHistory makes an origin of a number of chunks, whose content is original,
// with a snapshot.
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
	// The kernel needs zeroes in the first bytes only.
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

// reloaded makes the snapshot's device again, read-only and with a store that
// ends at another place. The error is that of loading the snapshot's table.
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

// load loads a table into a device, and makes the device if it is not there.
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

// resume lets a device have its table, and makes its node.
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

// original is the origin's first content: every eight bytes tell where they are.
func original(at, length size.Bytes) []byte {
	b := make([]byte, 0, length)
	for i := range length / 8 {
		b = binary.LittleEndian.AppendUint64(b, 1<<40|uint64(at+8*i))
	}
	return b
}

// other is what is written later.
func other(at, length size.Bytes) []byte {
	b := original(at, length)
	for i := range b {
		b[i] ^= 0xff
	}
	return b
}
