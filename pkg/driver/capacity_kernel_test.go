//go:build kernel

package driver

import (
	"os/exec"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// A group that cannot be changed has no room, whatever is free in it, so that no pod is sent
// there; once it can be again its room is back.
func TestNoRoomWithoutChange(t *testing.T) {
	disks := scratch(t)
	r := rigOf(t, pool.Config{Name: "fast", VolumeGroup: "vgdriver", Devices: disks[:2]})
	room := func() (free, largest int64) {
		t.Helper()
		a, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{})
		r.must("capacity", err)
		return a.GetAvailableCapacity(), a.GetMaximumVolumeSize().GetValue()
	}
	becomes := func(what string, none bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			free, largest := room()
			if none == (free == 0 && largest == 0) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: room for %d bytes, for a volume of %d", what, free, largest)
			}
		}
	}
	becomes("a new pool", false)
	lvm := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	lvm("vgexport", "-qq", "vgdriver")
	becomes("exported", true)
	lvm("vgimport", "-qq", "vgdriver")
	becomes("imported", false)
	const there = `global/system_id_source="lvmlocal" local/system_id="elsewhere"`
	lvm("vgchange", "-qq", "-y", "--systemid", "elsewhere", "vgdriver")
	becomes("of another system", true)
	lvm("vgchange", "-qq", "-y", "--config", there, "--systemid", "", "vgdriver")
	becomes("of this system again", false)
	r.stop()
	r.configs[0].Create = false // or the disk would seem blank
	label := r.overwriteLabel(disks[1], make([]byte, 4096))
	r.start()
	if p, err := r.pools.Pool("fast"); err != nil {
		t.Fatalf("without a disk: %v", err)
	} else if u, err := p.Usage(); err != nil || u.Free != 0 || u.Total == 0 {
		t.Errorf("without a disk: the metrics say %+v, %v", u, err)
	}
	becomes("without a disk", true)
	r.overwriteLabel(disks[1], label)
	becomes("with its disk again", false)
}
