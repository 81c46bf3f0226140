//go:build !kernel

package lvm2

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// TestStatus_usableAndWritable: a volume group that another host or lvm2 owns
// is not read or not committed.
func TestStatus_usableAndWritable(t *testing.T) {
	for _, c := range []struct {
		name     string
		change   func(*VG)
		read     error
		commit   error
		systemID string
	}{
		{name: "exported", change: func(vg *VG) { vg.Status = append(vg.Status, statusExported) }, read: ErrExported},
		{name: "clustered", change: func(vg *VG) { vg.Status = append(vg.Status, statusClustered) }, read: ErrShared},
		{name: "shared", change: func(vg *VG) { vg.Status = append(vg.Status, statusShared) }, read: ErrShared},
		{name: "lock type", change: func(vg *VG) { setKey(vg, "lock_type", `"sanlock"`) }, read: ErrShared},
		{name: "no lock type", change: func(vg *VG) { setKey(vg, "lock_type", `"none"`) }},
		{name: "foreign", change: func(vg *VG) { setKey(vg, "system_id", `"elsewhere"`) }, read: ErrForeignSystemID},
		{name: "our own", change: func(vg *VG) { setKey(vg, "system_id", `"here"`) }, systemID: "here"},
		{name: "read-only", change: func(vg *VG) { vg.Status = []string{statusResizeable, StatusRead} }, commit: ErrReadOnly},
		{name: "write locked", change: func(vg *VG) { vg.Status, vg.Flags = []string{statusResizeable, StatusRead}, []string{flagWriteLocked} }},
		{name: "unknown status", change: func(vg *VG) { vg.Status = append(vg.Status, "SHINY") }, read: ErrUnknownStatus},
		{name: "PV marked missing", change: func(vg *VG) {
			vg.PVs[0].text = strings.Replace(vg.PVs[0].text, "flags = []", `flags = ["MISSING"]`, 1)
		}, commit: ErrMissingPV},
	} {
		h := testHost(t)
		disks := blankDisks(t, 1, diskSize)
		s := createVG(t, h, disks, CreateOptions{})
		vg := read(t, s).Clone()
		c.change(vg)
		force(t, s, vg)
		s.Close()
		h.SystemID = c.systemID
		s, err := OpenVG(context.Background(), h, "vg", disks)
		if !errors.Is(err, c.read) || (err == nil) != (c.read == nil) {
			t.Errorf("%s: open: %v, want %v", c.name, err, c.read)
		}
		if err != nil {
			continue
		}
		next := read(t, s).Clone()
		if err := next.Add(linearLV("a", 0, 0, 1)); err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(context.Background(), next); !errors.Is(err, c.commit) || (err == nil) != (c.commit == nil) {
			t.Errorf("%s: commit: %v, want %v", c.name, err, c.commit)
		}
		s.Close()
	}
}
