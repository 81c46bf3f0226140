package filesystem

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A check that was killed is an error: its repair may be incomplete.
func TestCheck_killed(t *testing.T) {
	dir := t.TempDir()
	sb := make([]byte, ext4SuperOffset+superLen)
	sb[ext4SuperOffset+ext4Magic], sb[ext4SuperOffset+ext4Magic+1] = 0x53, 0xef
	sb[ext4SuperOffset+ext4State] = ext4Valid | ext4Faulty
	d := Device{Path: filepath.Join(dir, "disk"), Type: Ext4}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for _, f := range []struct {
		name, content string
		mode          os.FileMode
	}{
		{"disk", string(sb), 0o600},
		{"e2fsck", "#!/bin/sh\nkill -9 $$\n", 0o700},
	} {
		if err := os.WriteFile(filepath.Join(dir, f.name), []byte(f.content), f.mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("it counts as checked: %v", err)
	}
}
