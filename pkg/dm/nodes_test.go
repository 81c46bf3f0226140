package dm

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// TestEnsureNode_names: names that udev would encode have no node.
func TestEnsureNode_names(t *testing.T) {
	c := &Client{dev: t.TempDir(), udev: t.TempDir()}
	for _, name := range []string{"", ".", "..", "control", "a/b", "a b", "a\\x20b", "a:b", "ä", "a\x00"} {
		if path, err := c.EnsureNode(t.Context(), name, Device{254, 0}); err == nil {
			t.Errorf("%q has the node %s", name, path)
		}
		if err := c.RemoveNode(name); err == nil {
			t.Errorf("the node of %q was removed", name)
		}
	}
	if err := checkNodeName("vg-a--b.c_d+E9"); err != nil {
		t.Error(err)
	}
}

// TestRemoveNode_links: RemoveNode removes a dangling link, keeps a link to
// another device, and refuses a file.
func TestRemoveNode_links(t *testing.T) {
	c := &Client{dev: t.TempDir(), udev: t.TempDir()}
	dir := filepath.Join(c.dev, "mapper")
	target := filepath.Join(c.dev, "dm-1")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(target, nil, 0o600), os.WriteFile(c.Node("file"), nil, 0o600),
		os.Symlink("../dm-0", c.Node("dangling")), os.Symlink("../dm-1", c.Node("reused"))); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct{ fails, remains bool }{
		"none":     {false, false},
		"dangling": {false, false},
		"reused":   {false, true}, // leads to another device
		"file":     {true, true},
	} {
		err := c.RemoveNode(name)
		_, left := os.Lstat(c.Node(name))
		if (err != nil) != want.fails || (left == nil) != want.remains {
			t.Errorf("%s: error %v, then %v", name, err, left)
		}
	}
}

// TestUdevProperties_parse: properties are parsed, and device-mapper's rules
// are recognized.
func TestUdevProperties_parse(t *testing.T) {
	p := udevProperties("S:mapper/vg-a\nI:1234567\nE:DM_NAME=vg-a\nE:DM_UDEV_RULES=1\nE:X=a=b\nE:EMPTY=\nG:systemd\n")
	if want := (properties{"DM_NAME": "vg-a", "DM_UDEV_RULES": "1", "X": "a=b", "EMPTY": ""}); !reflect.DeepEqual(p, want) {
		t.Errorf("read as %v", p)
	}
	if !p.ofDeviceMapper() || udevProperties("I:1\nE:ID_FS_TYPE=ext4\n").ofDeviceMapper() {
		t.Error("rules for device-mapper are not distinguished from other rules")
	}
}
