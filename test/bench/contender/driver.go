package contender

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/disk"
)

// Pool describes one pool of the driver.
type Pool struct {
	Name    string
	Disk    disk.Disk
	Options map[string]string // more keys of the pool's configuration
}

// Driver is a running driver, with one of its pools.
type Driver struct {
	*process
	pool    Pool
	volumes map[string]volume
	ids     map[string]string // the ids of snapshots by name
}

type volume struct {
	id    string
	block bool
	shown bool // read-only: it shows a snapshot
}

// process is the driver's process, which its pools share.
type process struct {
	ctx        context.Context
	dir        string
	log        string
	cmd        *exec.Cmd
	controller csi.ControllerClient
	node       csi.NodeClient
}

// StartDriver starts the driver's binary and waits until it serves all pools. The pools
// clean no free extents: the zeroes would fill the sparse disks, and the machine's disk
// with them. All extents that a reader could see are wiped nevertheless.
func StartDriver(binary, dir string, pools ...Pool) ([]*Driver, error) {
	text := "pools:\n"
	for _, p := range pools {
		text += fmt.Sprintf("- name: %s\n  devices: [%s]\n  create: true\n  clean: never\n", p.Name, p.Disk)
		for k, v := range p.Options {
			text += fmt.Sprintf("  %s: %s\n", k, v)
		}
	}
	config, socket := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "csi.sock")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	p := &process{ctx: context.Background(), dir: dir, log: filepath.Join(dir, "driver.log")}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(binary, "node", "--config", config, "--endpoint", "unix://"+socket, "--node-name", "bench", "--kubelet-dir", dir, "-v", "2")
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	p.controller, p.node = csi.NewControllerClient(conn), csi.NewNodeClient(conn)
	var drivers []*Driver
	for _, pool := range pools {
		d := &Driver{p, pool, map[string]volume{}, map[string]string{}}
		if err := d.ready(); err != nil {
			return nil, errors.Join(err, p.Stop())
		}
		drivers = append(drivers, d)
	}
	return drivers, nil
}

func (d *Driver) ready() error {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c, err := d.controller.GetCapacity(d.ctx, &csi.GetCapacityRequest{Parameters: d.parameters()})
		if err == nil && c.GetAvailableCapacity() > 0 {
			return nil
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(d.log)
			return fmt.Errorf("the driver did not become ready: %w; its log:\n%s", err, text)
		}
	}
}

// Stop kills the driver. Its devices stay.
func (p *process) Stop() error {
	err := p.cmd.Process.Kill()
	_ = p.cmd.Wait() // the error is that it was killed
	return err
}

func (d *Driver) parameters() map[string]string { return map[string]string{"pool": d.pool.Name} }

func capability(block bool) *csi.VolumeCapability {
	c := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}}
	if block {
		c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	} else {
		c.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "ext4"}}
	}
	return c
}

// capability returns what the volume is used for.
func (v volume) capability() *csi.VolumeCapability {
	c := capability(v.block)
	if v.shown {
		c.AccessMode.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	}
	return c
}

func (d *Driver) Title() string   { return Ours }
func (d *Driver) Disk() disk.Disk { return d.pool.Disk }

func (d *Driver) Create(name string, length size.Bytes, block bool) error {
	id, err := d.create(name, length, block)
	if err != nil {
		return err
	}
	d.volumes[name] = volume{id, block, false}
	return nil
}

func (d *Driver) create(name string, length size.Bytes, block bool) (id string, err error) {
	r, err := d.controller.CreateVolume(d.ctx, &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: int64(length)},
		VolumeCapabilities: []*csi.VolumeCapability{capability(block)}, Parameters: d.parameters()})
	return r.GetVolume().GetVolumeId(), err
}

func (d *Driver) Delete(name string) error {
	_, err := d.controller.DeleteVolume(d.ctx, &csi.DeleteVolumeRequest{VolumeId: d.volumes[name].id})
	return err
}

// CreateMany makes volumes for file systems. Each of callers has one call at a time.
func (d *Driver) CreateMany(names []string, length size.Bytes, callers int) error {
	ids := make([]string, len(names))
	err := atOnce(len(names), callers, func(i int) (err error) {
		ids[i], err = d.create(names[i], length, false)
		return err
	})
	for i, id := range ids {
		d.volumes[names[i]] = volume{id: id}
	}
	return err
}

// DeleteMany deletes volumes. Each of callers has one call at a time.
func (d *Driver) DeleteMany(names []string, callers int) error {
	return atOnce(len(names), callers, func(i int) error { return d.Delete(names[i]) })
}

// atOnce calls f for the numbers below n, in several goroutines. It returns the first error.
func atOnce(n, goroutines int, f func(i int) error) error {
	var all errgroup.Group
	all.SetLimit(goroutines)
	for i := range n {
		all.Go(func() error { return f(i) })
	}
	return all.Wait()
}

func (d *Driver) staging(name string) string { return filepath.Join(d.dir, "staging", name) }
func (d *Driver) target(name string) string  { return filepath.Join(d.dir, "target", name) }

func (d *Driver) stage(name string) error {
	v := d.volumes[name]
	if err := os.MkdirAll(d.staging(name), 0o700); err != nil {
		return err
	}
	for {
		_, err := d.node.NodeStageVolume(d.ctx, &csi.NodeStageVolumeRequest{
			VolumeId: v.id, StagingTargetPath: d.staging(name), VolumeCapability: v.capability()})
		if status.Code(err) != codes.Aborted { // Aborted means that it is being wiped
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (d *Driver) unstage(name string) error {
	_, err := d.node.NodeUnstageVolume(d.ctx, &csi.NodeUnstageVolumeRequest{VolumeId: d.volumes[name].id, StagingTargetPath: d.staging(name)})
	return err
}

func (d *Driver) Attach(name string) (string, error) {
	if err := d.stage(name); err != nil {
		return "", err
	}
	v := d.volumes[name]
	_, err := d.node.NodePublishVolume(d.ctx, &csi.NodePublishVolumeRequest{
		VolumeId: v.id, StagingTargetPath: d.staging(name), TargetPath: d.target(name), VolumeCapability: v.capability()})
	return d.target(name), err
}

func (d *Driver) Detach(name string) error {
	_, err := d.node.NodeUnpublishVolume(d.ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: d.volumes[name].id, TargetPath: d.target(name)})
	if err != nil {
		return err
	}
	return d.unstage(name)
}

func (d *Driver) Mount(name string) (string, error) { return d.staging(name), d.stage(name) }
func (d *Driver) Unmount(name string) error         { return d.unstage(name) }

func (d *Driver) Snapshot(name, snapshot string, _ size.Bytes) error {
	r, err := d.controller.CreateSnapshot(d.ctx, &csi.CreateSnapshotRequest{Name: snapshot, SourceVolumeId: d.volumes[name].id})
	if err != nil {
		return err
	}
	d.ids[snapshot] = r.GetSnapshot().GetSnapshotId()
	return nil
}

func (d *Driver) DeleteSnapshot(_, snapshot string) error {
	_, err := d.controller.DeleteSnapshot(d.ctx, &csi.DeleteSnapshotRequest{SnapshotId: d.ids[snapshot]})
	return err
}

func (d *Driver) Clear(name string, snapshots []string) error {
	if err := d.Delete(name); err != nil {
		return err
	}
	for _, s := range snapshots {
		if err := d.DeleteSnapshot(name, s); err != nil {
			return err
		}
	}
	return nil
}

// Free returns the room for new volumes.
func (d *Driver) Free() (size.Bytes, error) {
	c, err := d.controller.GetCapacity(d.ctx, &csi.GetCapacityRequest{Parameters: d.parameters()})
	return size.Bytes(c.GetAvailableCapacity()), err
}

// Ready reports whether a snapshot still has its content.
func (d *Driver) Ready(snapshot string) (bool, error) {
	r, err := d.controller.ListSnapshots(d.ctx, &csi.ListSnapshotsRequest{SnapshotId: d.ids[snapshot]})
	if err != nil {
		return false, err
	}
	return len(r.GetEntries()) == 1 && r.GetEntries()[0].GetSnapshot().GetReadyToUse(), nil
}
