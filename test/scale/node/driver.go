package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const (
	group       = "vg-scale"
	nodeName    = "scale"
	startLimit  = 2 * time.Minute
	insistLimit = 2 * time.Minute
	metricsAt   = "127.0.0.1:9809"
	volumeSize  = 4 << 20
	fsType      = "ext4"
)

// driver is a running driver with one pool on one disk.
type driver struct {
	dir        string
	binary     string
	cmd        *exec.Cmd
	conn       *grpc.ClientConn
	controller csi.ControllerClient
	node       csi.NodeClient
	started    *figure // from the start of the process until the socket serves with the pool open
}

func (d *driver) config() string { return filepath.Join(d.dir, "config.yaml") }
func (d *driver) socket() string { return filepath.Join(d.dir, "csi.sock") }
func (d *driver) log() string    { return filepath.Join(d.dir, "driver.log") }

// start starts the driver, and waits until its socket serves with the pool open.
func start(binary, dir, disk string) (*driver, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	d := &driver{dir: dir, binary: binary}
	text := fmt.Sprintf("pools:\n- name: scale\n  volumeGroup: %s\n  devices: [%s]\n  create: true\n  clean: never\n", group, disk)
	if err := os.WriteFile(d.config(), []byte(text), 0o600); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(d.socket()); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(d.log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d.cmd = exec.Command(binary, "node", "--config", d.config(), "--endpoint", "unix://"+d.socket(), "--node-name", nodeName, "--kubelet-dir", dir, "--http", metricsAt)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	began := time.Now()
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	if d.conn, err = grpc.NewClient("unix://"+d.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20))); err != nil {
		return nil, errors.Join(err, d.kill())
	}
	d.controller, d.node = csi.NewControllerClient(d.conn), csi.NewNodeClient(d.conn)
	if err := d.ready(began); err != nil {
		text, _ := os.ReadFile(d.log())
		return nil, errors.Join(fmt.Errorf("the driver did not become ready: %w; its log:\n%s", err, text), d.kill())
	}
	d.started = value(time.Since(began).Seconds(), "s")
	return d, nil
}

// ready waits for the socket, and then for the pool. A pool that is not open has
// no capacity.
func (d *driver) ready(began time.Time) error {
	end := began.Add(startLimit)
	for ; ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(d.socket()); err == nil {
			break
		}
		if time.Now().After(end) {
			return errors.New("its socket does not appear")
		}
	}
	for ; ; time.Sleep(5 * time.Millisecond) {
		ctx, cancel := context.WithDeadline(context.Background(), end)
		c, err := d.controller.GetCapacity(ctx, &csi.GetCapacityRequest{}, grpc.WaitForReady(true))
		cancel()
		if err == nil && c.GetAvailableCapacity() > 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("its pool does not open: %w", err)
		}
	}
}

// stop ends the driver in good order. Its devices stay.
func (d *driver) stop() error {
	d.conn.Close()
	return errors.Join(d.cmd.Process.Signal(syscall.SIGTERM), d.cmd.Wait())
}

// kill ends the driver at any moment.
func (d *driver) kill() error {
	if d.conn != nil {
		d.conn.Close()
	}
	err := d.cmd.Process.Kill()
	_ = d.cmd.Wait() // the error is that it was killed
	return err
}

// rss returns the driver's resident memory.
func (d *driver) rss() (*figure, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, is := strings.CutPrefix(line, "VmRSS:"); is {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return value(kib/1024, "MiB"), err
		}
	}
	return nil, fmt.Errorf("process %d has no VmRSS", d.cmd.Process.Pid)
}

func capability(block bool) *csi.VolumeCapability {
	c := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}}
	if block {
		c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	} else {
		c.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType}}
	}
	return c
}

func (d *driver) create(name string, block bool) (id string, err error) {
	r, err := d.controller.CreateVolume(context.Background(), &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: volumeSize}, VolumeCapabilities: []*csi.VolumeCapability{capability(block)}})
	return r.GetVolume().GetVolumeId(), err
}

func (d *driver) delete(id string) error {
	_, err := d.controller.DeleteVolume(context.Background(), &csi.DeleteVolumeRequest{VolumeId: id})
	return err
}

func (d *driver) snapshot(volume, name string) (id string, err error) {
	err = insist(func() error {
		r, err := d.controller.CreateSnapshot(context.Background(), &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: volume})
		id = r.GetSnapshot().GetSnapshotId()
		return err
	})
	return id, err
}

func (d *driver) deleteSnapshot(id string) error {
	return insist(func() error {
		_, err := d.controller.DeleteSnapshot(context.Background(), &csi.DeleteSnapshotRequest{SnapshotId: id})
		return err
	})
}

// insist repeats a call while another call for the same volume runs, or while the
// volume is being wiped, as sidecars and the kubelet do.
func insist(call func() error) error {
	for end := time.Now().Add(insistLimit); ; {
		if err := call(); status.Code(err) != codes.Aborted || time.Now().After(end) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (d *driver) staging(id string) string { return filepath.Join(d.dir, "staging", id) }

// stage makes a block volume's device, as for a pod.
func (d *driver) stage(id string) error {
	if err := os.MkdirAll(d.staging(id), 0o700); err != nil {
		return err
	}
	return insist(func() error {
		_, err := d.node.NodeStageVolume(context.Background(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: d.staging(id), VolumeCapability: capability(true)})
		return err
	})
}

func (d *driver) unstage(id string) error {
	_, err := d.node.NodeUnstageVolume(context.Background(), &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: d.staging(id)})
	return err
}
