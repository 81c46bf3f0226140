package contender

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	lv "github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Restore makes a volume with the content of a snapshot. block says whether the
// snapshot is of a block volume.
func (d *Driver) Restore(name, snapshot string, length size.Bytes, block bool) error {
	return d.createFrom(name, length, block, &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
		Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: d.ids[snapshot]}}})
}

// Clone makes a volume with the content of another one.
func (d *Driver) Clone(name, volume string, length size.Bytes) error {
	return d.createFrom(name, length, d.volumes[volume].block, &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: d.volumes[volume].id}}})
}

// Show makes a read-only volume that shows a snapshot of a block volume.
func (d *Driver) Show(name, snapshot string, length size.Bytes) error {
	r, err := d.controller.CreateVolume(d.ctx, &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: int64(length)}, Parameters: d.parameters(),
		VolumeCapabilities: []*csi.VolumeCapability{volume{block: true, shown: true}.capability()},
		VolumeContentSource: &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: d.ids[snapshot]}}},
	})
	if err != nil {
		return err
	}
	d.volumes[name] = volume{r.GetVolume().GetVolumeId(), true, true}
	return nil
}

func (d *Driver) createFrom(name string, length size.Bytes, block bool, from *csi.VolumeContentSource) error {
	r, err := d.controller.CreateVolume(d.ctx, &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: int64(length)}, VolumeContentSource: from,
		VolumeCapabilities: []*csi.VolumeCapability{capability(block)}, Parameters: d.parameters()})
	if err != nil {
		return err
	}
	d.volumes[name] = volume{r.GetVolume().GetVolumeId(), block, false}
	return nil
}

// forkDevice returns the name of the device that a restored volume has while it
// reads through its snapshot.
func (d *Driver) forkDevice(name string) (string, error) {
	id, ok := handle.Parse(d.volumes[name].id)
	if !ok {
		return "", fmt.Errorf("volume %s has the malformed id %q", name, d.volumes[name].id)
	}
	return lv.DMName(d.pool.Name, id.LV, "fork"), nil
}

// Hydrating reports whether a restored volume still reads through its snapshot.
func (d *Driver) Hydrating(name string) (bool, error) {
	device, err := d.forkDevice(name)
	if err != nil {
		return false, err
	}
	c, err := dm.Open()
	if err != nil {
		return false, err
	}
	defer c.Close()
	return exists(c, device)
}

func exists(c *dm.Client, device string) (bool, error) {
	_, err := c.Info(device)
	if errors.Is(err, dm.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Hydrated waits until a volume that was just restored has become an ordinary
// one. It sleeps until device-mapper reports a change: a User-mode Linux may
// have only one processor, and polling would slow down hydration.
func (d *Driver) Hydrated(name string) error {
	const begin, end = 10 * time.Second, 20 * time.Minute
	device, err := d.forkDevice(name)
	if err != nil {
		return err
	}
	c, err := dm.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	changes, err := c.NewWatcher()
	if err != nil {
		return err
	}
	defer changes.Close()
	for _, phase := range []struct {
		is    bool
		limit time.Duration
	}{{true, begin}, {false, end}} {
		ctx, cancel := context.WithTimeout(d.ctx, phase.limit)
		defer cancel()
		for {
			if err := changes.Arm(); err != nil {
				return err
			}
			is, err := exists(c, device)
			if err != nil {
				return err
			}
			if is == phase.is {
				break
			}
			if err := changes.Wait(ctx); err != nil {
				return fmt.Errorf("hydrating volume %s: the fork's device exists: %v, after %v: %w", name, is, phase.limit, err)
			}
		}
	}
	return nil
}

// Wiped waits until deleted volumes and snapshots are wiped.
func (d *Driver) Wiped() error {
	const limit, pause = 5 * time.Minute, 100 * time.Millisecond
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(pause) {
		out, err := exec.Command(d.cmd.Path, "pools", "--config", filepath.Join(d.dir, "config.yaml"), "--pool", d.pool.Name, "-o", "json").Output()
		if err != nil {
			return fmt.Errorf("reading the state of pool %s: %w", d.pool.Name, err)
		}
		var pools []pool.PoolState
		if err := json.Unmarshal(out, &pools); err != nil || len(pools) != 1 {
			return fmt.Errorf("reading the state of pool %s: %w\n%s", d.pool.Name, err, out)
		}
		if pools[0].Trash == 0 {
			return nil
		}
	}
	return fmt.Errorf("deleted volumes are not wiped after %v", limit)
}
