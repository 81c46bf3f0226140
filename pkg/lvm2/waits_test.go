//go:build !kernel

package lvm2

import (
	"context"
	"testing"
	"time"

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
	if s.MaxText() != most || s.Stale() || len(s.Problems()) != 0 {
		t.Errorf("meanwhile: %v, %v, %v", s.MaxText(), s.Stale(), s.Problems())
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
