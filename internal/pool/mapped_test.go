package pool

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// TestHolders_sysfsOfAnotherKernel: holders trusts sysfs only if sysfs belongs to the
// kernel that has the devices.
func TestHolders_sysfsOfAnotherKernel(t *testing.T) {
	disk, first, second := dm.Device{Major: 8}, dm.Device{Major: 253, Minor: 3}, dm.Device{Major: 253, Minor: 4}
	all := []dm.ListEntry{{Name: "bare", Device: dm.Device{Major: 253, Minor: 9}}, {Name: "gone", UUID: "gone", Device: dm.Device{Major: 253, Minor: 8}},
		{Name: "a", UUID: "LVM-a", Device: first}, {Name: "b", UUID: "LVM-b", Device: second}}
	for _, c := range []struct {
		what  string
		uuids map[dm.Device]string // devices in sysfs
		disk  bool                 // sysfs has the disk
		known bool
	}{
		{"the same kernel", map[dm.Device]string{first: "LVM-a", second: "LVM-b"}, true, true},
		{"another kernel with the same disk", nil, true, false},
		{"another kernel with the same device number", map[dm.Device]string{first: "LVM-other"}, true, false},
		{"the disk is not in sysfs", map[dm.Device]string{first: "LVM-a"}, false, false},
	} {
		sysfs := t.TempDir()
		at := func(d dm.Device, name string) string { return filepath.Join(sysfs, "dev/block", d.String(), name) }
		for d, uuid := range c.uuids {
			if err := os.MkdirAll(at(d, "dm"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(at(d, "dm/uuid"), []byte(uuid+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if c.disk {
			if err := os.MkdirAll(at(disk, "holders/dm-3"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		got := holders(sysfs, map[dm.Device]int{disk: 0}, all)
		if known := got != nil; known != c.known || known && !maps.Equal(got, map[uint32]bool{3: true}) {
			t.Errorf("%s: %v", c.what, got)
		}
	}
	if got := holders(t.TempDir(), nil, nil); got != nil {
		t.Errorf("without sysfs, holders returned %v", got)
	}
}
