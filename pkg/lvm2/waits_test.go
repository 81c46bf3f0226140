//go:build !kernel

package lvm2

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// hangingFile is a disk that answers no read until it is released.
type hangingFile struct {
	diskFile
	reads chan struct{} // receives each read that hangs
	goOn  chan struct{}
}

func (f *hangingFile) ReadAt(b []byte, at int64) (int, error) {
	f.reads <- struct{}{}
	<-f.goOn
	return f.diskFile.ReadAt(b, at)
}

// While a disk does not answer, a Store still tells its state, and which disk it waits
// for.
func TestStore_hangingDisk(t *testing.T) {
	h, disks := testHost(t), blankDisks(t, 2, 64*size.MiB)
	s := createVG(t, h, disks, CreateOptions{})
	most := s.MaxText()
	if most == 0 || len(s.Waits()) != 0 {
		t.Fatalf("before: %v, waits %v", most, s.Waits())
	}
	hanging := &hangingFile{reads: make(chan struct{}), goOn: make(chan struct{})}
	for _, d := range s.open {
		if d.path == disks[1] {
			hanging.diskFile, d.file = d.file, hanging
		}
	}
	before, ended := time.Now(), make(chan error, 1)
	go func() {
		_, err := s.Read(context.Background())
		ended <- err
	}()
	<-hanging.reads
	if w := s.Waits(); len(w) != 1 || w[0].Device != disks[1] || w[0].Since.Before(before) {
		t.Errorf("it waits for %v, want %s", w, disks[1])
	}
	if s.MaxText() != most || s.Stale() || len(s.Problems()) != 0 || len(s.Lost()) != 0 {
		t.Errorf("meanwhile: %v, %v, %v, %v", s.MaxText(), s.Stale(), s.Problems(), s.Lost())
	}
	close(hanging.goOn)
	go func() {
		for range hanging.reads {
		}
	}()
	if err := <-ended; err != nil || len(s.Waits()) != 0 {
		t.Errorf("it ended with %v, and waits for %v", err, s.Waits())
	}
}

// A device that has nothing to do with a volume group and does not answer is skipped
// after a moment, and not at all waited for in later searches. It is none of the disks
// for which the group waits. A FIFO that nobody writes to is such a device.
func TestFindVG_hangingStranger(t *testing.T) {
	h, disks := testHost(t), blankDisks(t, 1, 64*size.MiB)
	createVG(t, h, disks, CreateOptions{})
	stranger := filepath.Join(t.TempDir(), "stranger")
	if err := unix.Mkfifo(stranger, 0o600); err != nil {
		t.Fatal(err)
	}
	defer func(limit time.Duration) { otherLimit = limit }(otherLimit)
	otherLimit = 100 * time.Millisecond
	s, err := FindVG(context.Background(), h, "vg", Search{Others: func() ([]string, error) { return append([]string{stranger}, disks...), nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if w := s.Waits(); len(w) != 0 {
		t.Errorf("it waits for %v", w)
	}
	began := time.Now()
	f := &finder{waits: &s.waits, other: &s.other}
	f.add(stranger, nil, otherLimit)
	if len(f.failed) != 1 || !strings.Contains(f.failed[0].Error(), "has not answered") || time.Since(began) > otherLimit {
		t.Errorf("again: %v after %v", f.failed, time.Since(began))
	}
	writer, err := os.OpenFile(stranger, os.O_WRONLY, 0) // now it answers
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	for end := time.Now().Add(10 * time.Second); s.other.longer(stranger, 0); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the search still waits for it")
		}
	}
}

// Many devices that do not answer delay a search no longer than a single one does, and
// hide no device that answers.
func TestFindVG_manyHangingStrangers(t *testing.T) {
	h, disks := testHost(t), blankDisks(t, 2, 64*size.MiB)
	createVG(t, h, disks, CreateOptions{})
	others := []string{disks[0]}
	for i := range 2 * looksAtOnce {
		stranger := filepath.Join(t.TempDir(), strconv.Itoa(i))
		if err := unix.Mkfifo(stranger, 0o600); err != nil {
			t.Fatal(err)
		}
		others = append(others, stranger)
	}
	others = append(others, disks[1])
	defer func(limit time.Duration) { otherLimit = limit }(otherLimit)
	otherLimit = time.Second
	began := time.Now()
	s, err := FindVG(context.Background(), h, "vg", Search{Others: func() ([]string, error) { return others, nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if took := time.Since(began); took > 10*otherLimit {
		t.Errorf("the search took %v", took)
	}
	if vg := read(t, s); vg.PVs[0].Device != disks[0] || vg.PVs[1].Device != disks[1] {
		t.Errorf("physical volumes on %q and %q", vg.PVs[0].Device, vg.PVs[1].Device)
	}
	for _, stranger := range others[1 : len(others)-1] { // ends the open that hangs
		w, err := os.OpenFile(stranger, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
	}
}
