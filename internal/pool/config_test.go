package pool

import (
	"errors"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestConfig_groupNames: the configuration refuses a group in which no deleted volume
// could have a name.
func TestConfig_groupNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"vg": true, strings.Repeat("a", 74): true, strings.Repeat("a", 75): false, strings.Repeat("a-", 24): true, strings.Repeat("a-", 24) + "aa": true,
		strings.Repeat("a-", 24) + "aaa": false, strings.Repeat("a-", 30): false, strings.Repeat("a", 127): false,
	} {
		err := Config{Name: "pool", VolumeGroup: name}.Check()
		if (err == nil) != ok || err != nil && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "each hyphen counts twice")) {
			t.Errorf("%s (%d bytes): %v", name, len(name), err)
		}
		if ok {
			continue
		}
		if _, err := OpenSet(t.Context(), []Config{{Name: "pool", VolumeGroup: name, File: "/does/not/exist", Size: 1 << 30}}, Options{RunDir: t.TempDir()}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: OpenSet returned %v", name, err)
		}
	}
}

// TestConfig_namesFitDevices: in every accepted group a new logical volume gets a name
// with which all of its devices can be made, and so does its trash.
func TestConfig_namesFitDevices(t *testing.T) {
	for _, group := range []string{"vg", strings.Repeat("a", 60), strings.Repeat("a", 74), strings.Repeat("a-", 24) + "aa"} {
		v := &view{View: &catalog.View{VG: &lvm2.VG{Name: group}}}
		seen := map[string]bool{}
		for _, csi := range []string{"pvc-01234567-89ab-cdef-0123-456789abcdef", "snapshot-01234567-89ab-cdef-0123-456789abcdef", strings.Repeat("x", 55), strings.Repeat("y", 128), "a-b-c-d-e-f-g-h-i-j-k-l-m-n-o-p-q-r-s-t-u-v-w-x-y-z"} {
			name, err := v.LVName(csi)
			if err != nil {
				t.Errorf("%s in %s: %v", csi, group, err)
				continue
			}
			for _, layer := range []string{layerReal, layerCOW, layerFork, layerWindow0, layerWindow1, layerRecovered} {
				if n := len(lvm2.DMName(group, name+"-99", layer)); n > 127 {
					t.Errorf("%s in %s: device %s of %s has %d bytes", csi, group, layer, name, n)
				}
			}
			if seen[name] {
				t.Errorf("%s in %s: two volumes get the name %s", csi, group, name)
			}
			seen[name] = true
		}
		if err := lvm2.CheckLVName(group, catalog.TrashName(lvm2.NewID())); err != nil {
			t.Error(err)
		}
	}
}
