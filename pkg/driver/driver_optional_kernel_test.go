//go:build kernel

package driver

import (
	"os"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// An optional pool that was never on this node is not missed: lists are
// complete, nothing is unhealthy, and the pool has no room. Once a call names
// one of the pool's volumes, the pool was here, and lists fail rather than omit
// its volumes.
func TestAllPools_optionalOfOtherNodes(t *testing.T) {
	disks, ctx := scratch(t), t.Context()
	r := rigOf(t, pool.Config{Name: "one", VolumeGroup: "vgone", Devices: disks[:1]})
	mine := r.configs
	defer func() { r.configs = mine }() // only this pool is cleaned up
	a := r.volume(request("a", 64, mount(writer, "ext4")))
	for what, other := range map[string]pool.Config{
		"adopted":             {},
		"on named disks":      {Devices: []string{"/dev/disk/by-id/no-such-disk"}},
		"made of matches":     {Devices: []string{"/dev/no-such-*"}, Create: true},
		"its match is in use": {Devices: []string{disks[0][:len(disks[0])-1] + "[" + disks[0][len(disks[0])-1:] + "]"}, Create: true},
	} {
		t.Run(what, func(t *testing.T) {
			r.t = t
			r.stop()
			other.Name, other.VolumeGroup, other.Optional = "two", "vg-two", true
			r.configs = append(mine[:1:1], other)
			r.start()
			list, err := r.ListVolumes(ctx, &csi.ListVolumesRequest{})
			if err != nil || len(list.GetEntries()) != 1 || list.GetEntries()[0].GetVolume().GetVolumeId() != a {
				t.Errorf("list: %v, %v", list, err)
			}
			_, err = r.ControllerListVolumeHealth(ctx, &csi.ControllerListVolumeHealthRequest{})
			r.must("health of all", err)
			h, err := r.NodeGetStorageHealth(ctx, &csi.NodeGetStorageHealthRequest{})
			if err != nil || strings.Contains(h.String(), "two") {
				t.Errorf("health: %v, %v", h, err)
			}
			class := map[string]string{"pool": "two"}
			room, err := r.GetCapacity(ctx, &csi.GetCapacityRequest{Parameters: class})
			if err != nil || room.GetAvailableCapacity() != 0 || room.GetMaximumVolumeSize().GetValue() != 0 {
				t.Errorf("room: %v, %v", room, err)
			}
			q := request("b", 64, mount(writer, "ext4"))
			q.Parameters = class
			_, err = r.CreateVolume(ctx, q)
			if r.want("create there", err, codes.ResourceExhausted); err == nil || !strings.Contains(err.Error(), `no pool "two"`) {
				t.Errorf("create there: %v", err)
			}
			r.want("delete of what was there", r.remove(strings.Replace(a, ":one:", ":two:", 1)), codes.Unavailable)
			_, err = r.ListVolumes(ctx, &csi.ListVolumesRequest{})
			r.want("list after somebody knew a volume of it", err, codes.Unavailable)
		})
	}
	r.t = t
}

// An optional pool that was here is missed when its disks are gone or damaged.
func TestAllPools_optionalThatWasHere(t *testing.T) {
	disks, ctx := scratch(t), t.Context()
	r := rigOf(t, pool.Config{Name: "one", VolumeGroup: "vgone", Devices: disks[:1]},
		pool.Config{Name: "two", VolumeGroup: "vg-two", Devices: disks[1:3], Optional: true})
	q := request("b", 64, mount(writer, "ext4"))
	q.Parameters = map[string]string{"pool": "two"}
	b := r.volume(q)
	listed := func(what string, want codes.Code) {
		t.Helper()
		_, err := r.ListVolumes(ctx, &csi.ListVolumesRequest{})
		r.want(what, err, want)
	}
	restarted := func(what string, want codes.Code) {
		t.Helper()
		r.stop()
		r.start()
		listed(what, want)
	}
	listed("at first", codes.OK)
	r.configs[1].Create, r.configs[1].Devices = false, nil
	r.must("stage", r.stage(b, "staging-b", mount(writer, "ext4")))
	labels := [][]byte{r.overwriteLabel(disks[1], make([]byte, 4096)), r.overwriteLabel(disks[2], make([]byte, 4096))}
	restarted("no disk is there, the kernel has its devices", codes.Unavailable)
	r.overwriteLabel(disks[1], labels[0])
	r.overwriteLabel(disks[2], labels[1])
	restarted("its disks are back", codes.OK)
	r.must("unstage", r.unstage(b, "staging-b"))
	// The metadata after the label is damaged on both disks.
	for i, d := range disks[1:3] {
		labels[i] = r.overwriteAt(d, 4096, make([]byte, 1<<20))
	}
	restarted("its metadata is damaged", codes.Unavailable)
	for i, d := range disks[1:3] {
		r.overwriteAt(d, 4096, labels[i])
	}
	restarted("it is in order again", codes.OK)
}

// overwriteAt writes content to a disk and returns the former content.
func (r *rig) overwriteAt(disk string, at int64, content []byte) []byte {
	r.t.Helper()
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	r.must("open "+disk, err)
	defer f.Close()
	was := make([]byte, len(content))
	_, err = f.ReadAt(was, at)
	r.must("read "+disk, err)
	_, err = f.WriteAt(content, at)
	r.must("write "+disk, err)
	r.must("sync "+disk, f.Sync())
	return was
}
