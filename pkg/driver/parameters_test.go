package driver

import (
	"testing"
)

// A parameter is accepted only if it is known or belongs to the sidecars.
func TestCheckParameters_unknownKey(t *testing.T) {
	for key, ok := range map[string]bool{
		"pool": true, "fstype": true, "csi.storage.k8s.io/pvc/name": true,
		"Pool": false, "csi.storage.k8s.io": false, "chunk": false, "": false,
	} {
		if err := checkParameters(map[string]string{key: "x"}, "pool", "fstype"); (err == nil) != ok {
			t.Errorf("%q: %v", key, err)
		}
	}
}
