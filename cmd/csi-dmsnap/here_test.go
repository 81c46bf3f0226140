package main

import (
	"strings"
	"testing"
)

// A volume is found by its name or its logical volume; a name that two pools have is
// ambiguous.
func TestNamed_volume(t *testing.T) {
	found := append(sample(), sample()...)
	found[1].Volumes = found[1].Volumes[:1]
	for name, ok := range map[string]bool{"pvc-1": true, "copy": true, "base": false, "none": false} {
		v, err := named{name: name}.volume(found)
		if (err == nil) != ok || ok && v.LV != "copy" {
			t.Errorf("%s: %q, %v", name, v.LV, err)
		}
		if name == "base" && !strings.Contains(err.Error(), `volume "base" is ambiguous`) {
			t.Error(err)
		}
	}
}
