package pool

import (
	"os"
	"path/filepath"
	"testing"
)

// TestFramePointers_ofConfigurations: framePointers reads from a kernel's configuration
// whether the kernel has frame pointers. An incomplete or missing file is an error.
func TestFramePointers_ofConfigurations(t *testing.T) {
	for text, want := range map[string]string{
		"CONFIG_BLK_DEV_DM=m\nCONFIG_UNWINDER_ORC=y\n# CONFIG_UNWINDER_FRAME_POINTER is not set\n": "false <nil>",
		"CONFIG_BLK_DEV_DM=m\nCONFIG_UNWINDER_FRAME_POINTER=y\n":                                   "true <nil>",
		"CONFIG_FRAME_POINTER=y\nCONFIG_BLK_DEV_DM=y\n":                                            "true <nil>",
		"half of a file": "false error",
	} {
		path := filepath.Join(t.TempDir(), "config")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		framed, err := framePointers(path)
		got := "false <nil>"
		if err != nil {
			got = "false error"
		} else if framed {
			got = "true <nil>"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	if _, err := framePointers(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a missing file causes no error")
	}
}
