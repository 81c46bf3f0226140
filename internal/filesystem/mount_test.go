package filesystem

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// TestMountsFrom_systemCalls: the mounts of other file systems and of other dm devices
// are told apart by the mount table alone. The mount points here do not exist, so a look
// at them finds nothing.
func TestMountsFrom_systemCalls(t *testing.T) {
	node := ""
	entries, err := os.ReadDir("/dev")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Type()&os.ModeDevice != 0 && e.Type()&os.ModeCharDevice == 0 {
			node = "/dev/" + e.Name()
		}
	}
	if node == "" {
		t.Skip("this machine has no block device")
	}
	var st unix.Stat_t
	if err := unix.Stat(node, &st); err != nil {
		t.Fatal(err)
	}
	major, minor := int(unix.Major(st.Rdev)), int(unix.Minor(st.Rdev))
	const gone = "/there/is/nothing"
	mounts := []*mountinfo.Info{
		{Major: major, Minor: minor, FSType: "ext4", Root: "/", Mountpoint: gone},
		{Major: major, Minor: minor, FSType: "xfs", Root: "/sub", Mountpoint: gone},
		{FSType: "btrfs", Root: "/sub", Source: node, Mountpoint: gone},
		{FSType: "devtmpfs", Root: "/dm-" + fmt.Sprint(minor), Mountpoint: node},
		{FSType: "devtmpfs", Root: "/dm-" + fmt.Sprint(minor) + "//deleted", Mountpoint: node},
		{FSType: "tmpfs", Root: "/dm-" + fmt.Sprint(minor+1), Mountpoint: node},
		{FSType: "devtmpfs", Root: "/mapper/x", Mountpoint: node},
	}
	others := []*mountinfo.Info{
		{Major: major, Minor: minor + 1, FSType: "ext4", Root: "/", Source: node, Mountpoint: node},
		{FSType: "devtmpfs", Root: "/dm-" + fmt.Sprint(minor+1), Mountpoint: node},
		{FSType: "devtmpfs", Root: "/", Source: node, Mountpoint: node},
		{FSType: "btrfs", Root: "/", Source: gone, Mountpoint: node},
		{FSType: "devtmpfs", Root: "/mapper/x", Mountpoint: gone},
	}
	if got := MountsFrom(slices.Concat(mounts, others), node); !slices.Equal(got, mounts) {
		t.Errorf("got %+v", got)
	}
	if got := MountsFrom(mounts, gone); len(got) != 0 {
		t.Errorf("a device that does not exist has the mounts %+v", got)
	}
}
