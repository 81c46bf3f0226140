//go:build kernel

package dm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// status is the status of a device with one segment.
func status(t *testing.T, c *Client, name string) Status {
	t.Helper()
	all, err := c.Status(name)
	must(t, err)
	if len(all) != 1 {
		t.Fatalf("status of %s has %d segments", name, len(all))
	}
	return all[0].Status
}

func checkStatus(t *testing.T, c *Client, name, want string) {
	t.Helper()
	if got := status(t, c, name); got.String() != want {
		t.Errorf("status of %s is %q, not %q", name, got, want)
	}
}

// write writes n bytes of value v to a device, and waits until they are on disk.
func write(path string, at, n size.Bytes, v byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(bytes.Repeat([]byte{v}, int(n)), int64(at))
	return errors.Join(err, f.Sync(), f.Close())
}

// read returns the first byte behind at, as it is on disk.
func read(t *testing.T, path string, at size.Bytes) byte {
	t.Helper()
	b := aligned(t)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT, 0)
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.Pread(fd, b, int64(at))
	must(t, err)
	return b[0]
}

// aligned is a page that O_DIRECT takes.
func aligned(t *testing.T) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(t, err)
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}

// snapshotted makes the four devices of an origin of 8 MiB, all bytes of value
// 1, with a snapshot whose store has the given length. It returns the paths of
// origin and snapshot.
func snapshotted(t *testing.T, c *Client, p Persistence, store size.Bytes) (origin, snapshot string) {
	t.Helper()
	real := mapped(t, c, "t-real", slice(disk(t, 0), 0, 8))
	cow := mapped(t, c, "t-cow", slice(disk(t, 1), 0, store))
	must(t, write(node(t, c, "t-real", real), 0, 8*size.MiB, 1))
	must(t, write(node(t, c, "t-cow", cow), 0, 4*size.KiB, 0))
	o, err := c.Create("t-origin", "")
	must(t, err)
	must(t, c.Load("t-origin", Table{{0, (8 * size.MiB).Sectors(), SnapshotOrigin{real}}}, false))
	s := mapped(t, c, "t-snap", fmt.Sprintf("0 16384 snapshot %v %v %s 8", real, cow, p))
	must(t, c.Resume("t-origin", UdevPrimarySource))
	return node(t, c, "t-origin", o.Device), node(t, c, "t-snap", s)
}

func TestPlainTargets(t *testing.T) {
	c := open(t)
	a, b := disk(t, 0), disk(t, 1)
	for table, want := range map[string]string{
		fmt.Sprintf("0 2048 linear %v 384", a):                 "",
		fmt.Sprintf("0 2048 striped 2 128 %v 0 %v 1024", a, b): fmt.Sprintf("2 %v %v 1 AA", a, b),
		"0 2048 zero":  "",
		"0 2048 error": "",
		fmt.Sprintf("0 2048 snapshot-origin %v", a):                      "",
		fmt.Sprintf("0 8 linear %v 0\n8 8 zero\n16 8 linear %v 0", a, b): "",
	} {
		mapped(t, c, "t-plain", table)
		checkTable(t, c, "t-plain", table)
		all, err := c.Status("t-plain")
		must(t, err)
		for i, s := range parse(t, table) {
			if got := all[i]; got != (TargetStatus{s.Start, s.Length, s.Target.Type(), RawStatus(want)}) {
				t.Errorf("status of %v is %+v", s, got)
			}
		}
		must(t, c.Remove("t-plain", 0))
	}
}

func TestPersistentSnapshot(t *testing.T) {
	c := open(t)
	origin, snapshot := snapshotted(t, c, Persistent, 1)
	checkTable(t, c, "t-snap", fmt.Sprintf("0 16384 snapshot %v %v P 8", dev(t, c, "t-real"), dev(t, c, "t-cow")))
	checkStatus(t, c, "t-snap", "16/2048 16")
	must(t, write(origin, 0, 4*size.KiB, 2))
	checkStatus(t, c, "t-snap", "24/2048 16")
	if o, s := read(t, origin, 0), read(t, snapshot, 0); o != 2 || s != 1 {
		t.Errorf("origin reads %d and snapshot %d", o, s)
	}
}

func TestTransientSnapshot(t *testing.T) {
	c := open(t)
	origin, snapshot := snapshotted(t, c, Transient, 1)
	checkTable(t, c, "t-snap", fmt.Sprintf("0 16384 snapshot %v %v N 8", dev(t, c, "t-real"), dev(t, c, "t-cow")))
	checkStatus(t, c, "t-snap", "0/2048 0")
	must(t, write(origin, 0, 4*size.KiB, 2))
	checkStatus(t, c, "t-snap", "8/2048 0")
	if s := read(t, snapshot, 0); s != 1 {
		t.Errorf("snapshot reads %d", s)
	}
}

// A store that a write to the snapshot fills up: with PO only the write fails.
func TestOverflow(t *testing.T) {
	c := open(t)
	origin, snapshot := snapshotted(t, c, PersistentOverflow, 1)
	checkTable(t, c, "t-snap", fmt.Sprintf("0 16384 snapshot %v %v PO 8", dev(t, c, "t-real"), dev(t, c, "t-cow")))
	if err := write(snapshot, 0, 2*size.MiB, 3); !errors.Is(err, unix.EIO) {
		t.Errorf("write beyond the store: %v", err)
	}
	if s := status(t, c, "t-snap"); s != (SnapshotStatus{Overflow: true}) {
		t.Errorf("status is %q", s)
	}
	if s := read(t, snapshot, 4*size.MiB); s != 1 {
		t.Errorf("snapshot reads %d", s)
	}
	must(t, write(origin, 0, 4*size.KiB, 2))
}

// A store that a write to the origin fills up: the snapshot is lost, and an
// event tells so.
func TestInvalidationWakesWatcher(t *testing.T) {
	c := open(t)
	origin, _ := snapshotted(t, c, Persistent, 1)
	w, err := c.NewWatcher()
	must(t, err)
	defer w.Close()
	must(t, w.Arm())
	wait := func(limit time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		return w.Wait(ctx)
	}
	for range 2 { // a wait that was given up does not spoil the next
		if err := wait(100 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("wait without an event: %v", err)
		}
	}
	before, err := c.Info("t-snap")
	must(t, err)
	written := make(chan error, 1)
	go func() { written <- write(origin, 0, 2*size.MiB, 2) }()
	must(t, wait(20*time.Second))
	must(t, <-written)
	checkStatus(t, c, "t-snap", "Invalid")
	after, err := c.Info("t-snap")
	must(t, err)
	if after.EventNr != before.EventNr+1 {
		t.Errorf("event number was %d and is %d", before.EventNr, after.EventNr)
	}
	must(t, wait(time.Second)) // it stays until armed again
	must(t, w.Arm())
	if err := wait(100 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait after arming again: %v", err)
	}
	must(t, c.Rename("t-snap", "t-renamed", 0))
	must(t, wait(time.Second))
}

func TestWatcherClose(t *testing.T) {
	w, err := open(t).NewWatcher()
	must(t, err)
	must(t, w.Arm())
	ended := make(chan error)
	go func() { ended <- w.Wait(context.Background()) }()
	time.Sleep(50 * time.Millisecond)
	must(t, w.Close())
	select {
	case err := <-ended:
		if err == nil {
			t.Error("closing looks like an event")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("closing does not end the wait")
	}
}

func TestMerge(t *testing.T) {
	c := open(t)
	origin, snapshot := snapshotted(t, c, Persistent, 1)
	must(t, write(snapshot, size.MiB, 64*size.KiB, 3))
	must(t, c.Remove("t-snap", 0))
	table := Table{{0, 16384, SnapshotMerge{Origin: dev(t, c, "t-real"), COW: dev(t, c, "t-cow"), Persistence: Persistent, Chunk: 8}}}
	must(t, c.Load("t-origin", table, false))
	must(t, c.Resume("t-origin", UdevPrimarySource))
	checkTable(t, c, "t-origin", table.String())
	eventually(t, func() bool {
		s := status(t, c, "t-origin").(SnapshotStatus)
		return s == SnapshotStatus{Used: 16, Total: 2048, Metadata: 16}
	})
	if a, b := read(t, origin, 0), read(t, origin, size.MiB); a != 1 || b != 3 {
		t.Errorf("merged origin reads %d and %d", a, b)
	}
}

func TestMirror(t *testing.T) {
	c := open(t)
	a, b := disk(t, 0), disk(t, 1)
	must(t, write(diskPath(t, 0), 32*size.MiB, 8*size.MiB, 4))
	table := fmt.Sprintf("0 16384 mirror core 1 1024 2 %v 65536 %v 65536 1 handle_errors", a, b)
	mapped(t, c, "t-mirror", table)
	checkTable(t, c, "t-mirror", table)
	eventually(t, func() bool { return status(t, c, "t-mirror").(MirrorStatus).Synced() })
	checkStatus(t, c, "t-mirror", fmt.Sprintf("2 %v %v 16/16 1 AA 1 core", a, b))
	if v := read(t, diskPath(t, 1), 40*size.MiB-4*size.KiB); v != 4 {
		t.Errorf("the copy reads %d", v)
	}

	nosync := fmt.Sprintf("0 16384 mirror core 2 1024 nosync 2 %v 65536 %v 65536", a, b)
	reload(t, c, "t-mirror", nosync)
	checkTable(t, c, "t-mirror", nosync)
	checkStatus(t, c, "t-mirror", fmt.Sprintf("2 %v %v 16/16 1 AA 1 core", a, b))
}

// A mirror whose source cannot be read says so and is not in sync.
func TestMirrorReadError(t *testing.T) {
	c := open(t)
	bad := mapped(t, c, "t-bad", "0 16384 error")
	mapped(t, c, "t-mirror", fmt.Sprintf("0 16384 mirror core 1 1024 2 %v 0 %v 65536 1 handle_errors", bad, disk(t, 1)))
	eventually(t, func() bool {
		s := status(t, c, "t-mirror").(MirrorStatus)
		return s.Legs[0].Health == LegSyncError && !s.Synced()
	})
}

// dev is the number of a device.
func dev(t *testing.T, c *Client, name string) Device {
	t.Helper()
	info, err := c.Info(name)
	must(t, err)
	return info.Device
}

// eventually waits for what takes the kernel a moment.
func eventually(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen within 20 s")
		}
	}
}
