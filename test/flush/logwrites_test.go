//go:build kernel

package flush

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/directio"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The log of dm-log-writes: a sector that describes the log, then entries, each
// a sector and the data that was written. All numbers are little-endian. The
// kernel logs a write with FUA immediately, and another write when a flush has
// made it durable. It logs the flush after these writes.
const (
	logMagic   = 0x6a736677736872
	logVersion = 1

	loggedFlush   = 1 << 0
	loggedFUA     = 1 << 1
	loggedDiscard = 1 << 2
	loggedMark    = 1 << 3

	lastMark = "dm-log-writes-end" // the kernel's own, when the device is removed
	markOf   = "history-"          // before the number of an event
)

// readLog returns what a log of dm-log-writes has, as events of disk 0. A mark
// has the number of one of others, and stands for this event. The mark of the first event
// that others does not have ends the log: the kernel logs until its device is removed, and
// others ends earlier.
func readLog(log io.ReaderAt, others []event) (events []event, err error) {
	head := make([]byte, 4*size.KiB)
	if _, err := log.ReadAt(head, 0); err != nil {
		return nil, err
	}
	magic, version := binary.LittleEndian.Uint64(head), binary.LittleEndian.Uint64(head[8:])
	entries, sector := binary.LittleEndian.Uint64(head[16:]), int64(binary.LittleEndian.Uint32(head[24:]))
	if magic != logMagic || version != logVersion || sector < size.SectorBytes || sector > int64(len(head)) {
		return nil, fmt.Errorf("not a log of dm-log-writes: magic %#x, version %d, sectors of %d bytes", magic, version, sector)
	}
	at := sector
	for range entries {
		if _, err := log.ReadAt(head[:sector], at); err != nil {
			return nil, err
		}
		at += sector
		field := func(i int) int64 { return int64(binary.LittleEndian.Uint64(head[8*i:])) }
		flags := field(2)
		if flags&loggedMark != 0 {
			mark := string(head[32 : 32+field(3)])
			if mark == lastMark {
				return events, nil
			}
			var n int
			if _, err := fmt.Sscanf(mark, markOf+"%d", &n); err != nil || n > len(others) {
				return nil, fmt.Errorf("mark %q is not of one of %d events", mark, len(others))
			}
			if n == len(others) { // the worker's first write after the record's end
				return events, nil
			}
			events = append(events, others[n])
			continue
		}
		if flags&loggedFlush != 0 {
			events = append(events, event{Kind: flush})
		}
		e := event{Kind: write, At: field(0) * sector, Len: field(1) * sector}
		switch {
		case e.Len == 0:
			continue
		case flags&loggedDiscard != 0:
			e.Kind = discard
			events = append(events, e)
			continue
		case flags&loggedFUA != 0:
			e.Kind = through
		}
		e.Data = make([]byte, e.Len)
		if _, err := log.ReadAt(e.Data, at); err != nil {
			return nil, err
		}
		at += e.Len
		events = append(events, e)
	}
	return nil, errors.New("the log has no end: it was too small")
}

// marking is the disk for the history. It puts each of the worker's writes into
// the log as a mark.
type marking struct {
	*recorded
	mark func(string) error
}

func (d *marking) write(p []byte, at int64, fua bool) error {
	d.to.mu.Lock()
	n := len(d.to.events)
	d.to.mu.Unlock()
	if err := d.mark(fmt.Sprint(markOf, n)); err != nil {
		return err
	}
	return d.recorded.write(p, at, fua)
}

// TestFlushes_logWrites: whatever part of its cache a disk loses, everything that was
// acknowledged is there. Here dm-log-writes recorded the writes.
func TestFlushes_logWrites(t *testing.T) {
	r := newRig(t, newSeed(t), 1)
	r.campaign(func(int) ([]*memory, []event) {
		first := firstContent(r.random)
		return []*memory{first}, r.recordByKernel(first)
	})
}

// recordByKernel is record for a disk whose writes the kernel logs.
func (r *rig) recordByKernel(first *memory) []event {
	r.t.Helper()
	ok := func(err error) {
		r.t.Helper()
		if err != nil {
			r.t.Fatal(err)
		}
	}
	scratch := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")[0]
	const name = "flushlog"
	ok(r.disks[0].replace(newMemory(first)))
	path := r.logWrites(name, scratch)
	rec := &record{}
	ok(r.history.replace(&marking{&recorded{newMemory(nil), rec, historyDisk}, func(text string) error {
		_, err := r.dm.Message(name, 0, "mark "+text)
		return err
	}}))
	r.showLVM2(path)
	r.load([]string{path}, rec, *loadTime, r.random.IntN(3)/2)
	ok(r.dm.Remove(name, 0))
	ok(r.dm.RemoveNode(name))
	r.showLVM2(r.paths()...)
	log, err := os.OpenFile(scratch, os.O_RDONLY|unix.O_DIRECT, 0)
	ok(err)
	defer log.Close()
	b, free, err := directio.Buffer(size.MiB)
	ok(err)
	defer free()
	events, err := readLog(&direct{log, b}, rec.events)
	ok(err)
	return events
}

// direct reads past the page cache, which has what was read before.
type direct struct {
	file   *os.File
	buffer []byte
}

func (d *direct) ReadAt(p []byte, at int64) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = d.file.ReadAt(d.buffer[:min(len(p)-n, len(d.buffer))], at+int64(n))
		n += copy(p[n:], d.buffer[:m])
	}
	return n, err
}

// logWrites puts a device above the first disk that logs writes to another disk.
func (r *rig) logWrites(name, to string) string {
	r.t.Helper()
	var path string
	below, err := dm.DeviceOf(r.disks[0].path)
	if err != nil {
		r.t.Fatal(err)
	}
	log, err := dm.DeviceOf(to)
	if err != nil {
		r.t.Fatal(err)
	}
	info, err := r.dm.Create(name, "")
	if err == nil {
		err = r.dm.Load(name, dm.Table{{Length: diskSize.Sectors(), Target: dm.Unknown{Name: "log-writes", Args: fmt.Sprintf("%v %v", below, log)}}}, false)
	}
	if err == nil {
		err = r.dm.Resume(name, 0)
	}
	if err == nil {
		path, err = r.dm.EnsureNode(context.Background(), name, info.Device)
	}
	if err != nil {
		r.t.Fatalf("a device of dm-log-writes: %v", err)
	}
	r.t.Cleanup(func() { _ = r.dm.Remove(name, 0) }) // if the test failed
	return path
}

// TestReadLog_everyEntry: the reader knows all kinds of entries. It ends where the record
// of the other events ends, and refuses a log that is cut short.
func TestReadLog_everyEntry(t *testing.T) {
	const sector = size.SectorBytes
	var log bytes.Buffer
	super := func(n uint64) []byte {
		b := binary.LittleEndian.AppendUint64(nil, logMagic)
		b = binary.LittleEndian.AppendUint64(b, logVersion)
		b = binary.LittleEndian.AppendUint64(b, n)
		b = binary.LittleEndian.AppendUint32(b, sector)
		return append(b, make([]byte, sector-len(b))...)
	}
	entry := func(at, n, flags uint64, mark string, data ...byte) {
		var b []byte
		for _, v := range []uint64{at, n, flags, uint64(len(mark))} {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		b = append(b, mark...)
		log.Write(append(b, make([]byte, sector-len(b))...))
		for _, x := range data {
			log.Write(bytes.Repeat([]byte{x}, sector))
		}
	}
	entry(7, 2, 0, "", 1, 2)
	entry(0, 0, loggedFlush, "")
	entry(0, 0, loggedMark, "history-0")
	entry(9, 1, loggedFUA, "", 3)
	entry(1, 100, loggedDiscard, "")
	entry(5, 1, loggedFlush|loggedFUA, "", 4)
	entry(0, 0, loggedMark, lastMark)
	other := event{Disk: historyDisk, Kind: write, At: 512, Len: 512}
	got, err := readLog(bytes.NewReader(append(super(7), log.Bytes()...)), []event{other})
	if err != nil {
		t.Fatal(err)
	}
	data := func(xs ...byte) (b []byte) {
		for _, x := range xs {
			b = append(b, bytes.Repeat([]byte{x}, sector)...)
		}
		return b
	}
	want := []event{
		{Kind: write, At: 7 * sector, Len: 2 * sector, Data: data(1, 2)}, {Kind: flush}, other,
		{Kind: through, At: 9 * sector, Len: sector, Data: data(3)}, {Kind: discard, At: sector, Len: 100 * sector},
		{Kind: flush}, {Kind: through, At: 5 * sector, Len: sector, Data: data(4)},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if got, err := readLog(bytes.NewReader(append(super(7), log.Bytes()...)), nil); err != nil || fmt.Sprint(got) != fmt.Sprint(want[:2]) {
		t.Errorf("the log does not end with the record of the other events: %v, %v", got, err)
	}
	if _, err := readLog(bytes.NewReader(append(super(6), log.Bytes()...)), []event{other}); err == nil {
		t.Error("a log without its last mark is accepted")
	}
	log.Reset()
	entry(0, 0, loggedMark, "history-2")
	if _, err := readLog(bytes.NewReader(append(super(1), log.Bytes()...)), []event{other}); err == nil {
		t.Error("the mark of an event that cannot be the next is accepted")
	}
}
