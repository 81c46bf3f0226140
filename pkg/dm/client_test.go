package dm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestMiscMinor_driver: the minor number of a driver is found, and a missing
// driver is ErrNotSupported.
func TestMiscMinor_driver(t *testing.T) {
	misc := filepath.Join(t.TempDir(), "misc")
	if err := os.WriteFile(misc, []byte(" 61 cpu_dma_latency\n236 device-mapper\n  1 psaux\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if minor, err := miscMinor(misc, "device-mapper"); err != nil || minor != 236 {
		t.Errorf("minor is %d, %v", minor, err)
	}
	if minor, err := miscMinor(misc, "nonsense"); !errors.Is(err, ErrNotSupported) {
		t.Errorf("minor is %d, %v", minor, err)
	}
}
