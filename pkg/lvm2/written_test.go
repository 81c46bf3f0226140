//go:build !kernel

package lvm2

import (
	"errors"
	"slices"
	"testing"
)

// tracedFile notes what is done to a disk, and can fail to flush.
type tracedFile struct {
	diskFile
	name string
	log  *[]string
	fail error
}

func (f *tracedFile) WriteAt(b []byte, at int64) (int, error) {
	*f.log = append(*f.log, "write "+f.name)
	return f.diskFile.WriteAt(b, at)
}

func (f *tracedFile) Sync() error {
	*f.log = append(*f.log, "flush "+f.name)
	return errors.Join(f.fail, f.diskFile.Sync())
}

// What lies on a disk without a metadata area is flushed before the commit.
func TestCommitFlushesWritten(t *testing.T) {
	h := testHost(t)
	disks := blankDisks(t, 2, diskSize)
	s := createVG(t, h, disks, CreateOptions{})
	vg := read(t, s)
	var log []string
	traced := map[string]*tracedFile{}
	for name, pv := range map[string]*PV{"meta": vg.PVs[0], "data": vg.PVs[1]} {
		d := s.deviceOf(pv)
		traced[name] = &tracedFile{diskFile: d.file, name: name, log: &log}
		d.file = traced[name]
	}
	areas := slices.DeleteFunc(slices.Clone(s.areas), func(a *metadataArea) bool { return a.dev != s.deviceOf(vg.PVs[0]) })
	commit := func(name string, written ...*PV) error {
		next := vg.Clone()
		if err := addLV(name, 0, Extents(len(next.LVs)), 1)(next); err != nil {
			t.Fatal(err)
		}
		log = nil
		err := s.commit(next, areas, written...)
		if err == nil {
			vg = next
		}
		return err
	}
	own := []string{"write meta", "write meta", "flush meta", "write meta", "flush meta"}
	for _, c := range []struct {
		name    string
		written []*PV
		want    []string
	}{
		{"none", nil, own},
		{"metadata", vg.PVs[:1], own},
		{"data", []*PV{vg.PVs[1], vg.PVs[0], vg.PVs[1]}, slices.Insert(slices.Clone(own), 3, "flush data")},
	} {
		if err := commit(c.name, c.written...); err != nil || !slices.Equal(log, c.want) {
			t.Errorf("%s: %v, %q, want %q", c.name, err, log, c.want)
		}
	}
	seqno := vg.Seqno
	traced["data"].fail = errFault
	if err := commit("lost", vg.PVs[1]); !errors.Is(err, errFault) {
		t.Errorf("the data is not on the disk: %v", err)
	}
	if err := commit("gone", &PV{Device: "/does/not/exist"}); !errors.Is(err, ErrMissingPV) || len(log) != 0 {
		t.Errorf("a device that is not there: %v, %q", err, log)
	}
	if now := read(t, openVG(t, h, disks)); now.Seqno != seqno || now.LV("lost") != nil {
		t.Errorf("a failed commit counts: seqno %d, want %d", now.Seqno, seqno)
	}
}
