package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	ourGroup   = "ours"
	theirGroup = "theirs"
	volumeSize = 64 * size.MiB
	originSize = size.GiB
)

// bench has the driver running on one disk, and a group for lvm2 on another.
type bench struct {
	ctx        context.Context
	dir        string
	pairs      int
	disks      []string
	cmd        *exec.Cmd
	controller csi.ControllerClient
	node       csi.NodeClient
	results    []result
}

func newBench(driver string, pairs int) (*bench, error) {
	disks := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")
	if len(disks) < 2 {
		return nil, fmt.Errorf("two scratch disks are needed: run this by hack/bench")
	}
	dir, err := os.MkdirTemp("", "dmsnap-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{ctx: context.Background(), dir: dir, pairs: pairs, disks: disks}
	config, socket := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "csi.sock")
	text := fmt.Sprintf("pools:\n- name: bench\n  volumeGroup: %s\n  devices: [%s]\n  create: true\n", ourGroup, disks[0])
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "driver.log"))
	if err != nil {
		return nil, err
	}
	b.cmd = exec.Command(driver, "node", "--config", config, "--endpoint", "unix://"+socket, "--node-name", "bench", "--kubelet-dir", dir)
	b.cmd.Stdout, b.cmd.Stderr = log, log
	if err := b.cmd.Start(); err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return b, err
	}
	b.controller, b.node = csi.NewControllerClient(conn), csi.NewNodeClient(conn)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err = b.controller.GetCapacity(b.ctx, &csi.GetCapacityRequest{}); err == nil {
			return b, nil
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(log.Name())
			return b, fmt.Errorf("the driver does not get ready: %w; its log:\n%s", err, text)
		}
	}
}

func (b *bench) stop() {
	if b.cmd != nil {
		_ = b.cmd.Process.Kill() // the guest ends with us
		_ = b.cmd.Wait()
	}
}

func (b *bench) run() error {
	have := 0
	for _, n := range []int{0, 100, 600} {
		if err := b.fill(have, n); err != nil {
			return err
		}
		have = n
		for _, part := range []func(int) error{b.volumes, b.snapshots} {
			if err := part(n); err != nil {
				return err
			}
		}
	}
	return nil
}

// fill brings both groups to n volumes with metadata of the same kind.
func (b *bench) fill(from, n int) error {
	p, err := pool.Open(b.ctx, pool.Config{Name: theirGroup, Devices: b.disks[1:2], Create: true}, pool.Options{})
	if err != nil {
		return err
	}
	for i := from; i < n; i++ {
		name := fmt.Sprintf("pvc-%08d-1111-2222-3333-444444444444", i)
		if _, err := b.create(name, volumeSize); err != nil {
			return err
		}
		if _, err := p.CreateVolume(b.ctx, pool.VolumeSpec{Name: name, Size: volumeSize, Mode: pool.Filesystem, FSType: "ext4"}); err != nil {
			return err
		}
	}
	return p.Close()
}

func capability() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "ext4"}},
	}
}

func (b *bench) create(name string, length size.Bytes) (id string, err error) {
	v, err := b.controller.CreateVolume(b.ctx, &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: int64(length)}, VolumeCapabilities: []*csi.VolumeCapability{capability()}})
	return v.GetVolume().GetVolumeId(), err
}

func (b *bench) delete(id string) error {
	_, err := b.controller.DeleteVolume(b.ctx, &csi.DeleteVolumeRequest{VolumeId: id})
	return err
}

// lvm runs one of lvm2's commands.
func lvm(args ...string) error {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// settled waits until deleted volumes are wiped, which is not what is measured.
func (b *bench) settled(room int64) error {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		c, err := b.controller.GetCapacity(b.ctx, &csi.GetCapacityRequest{})
		if err != nil || c.GetAvailableCapacity() == room {
			return err
		}
	}
	return fmt.Errorf("deleted volumes are not wiped after a minute")
}

func (b *bench) room() (int64, error) {
	c, err := b.controller.GetCapacity(b.ctx, &csi.GetCapacityRequest{})
	return c.GetAvailableCapacity(), err
}

func (b *bench) add(name string, ours, theirs []time.Duration) {
	o, t := median(ours), median(theirs)
	b.results = append(b.results, result{Name: name, Ours: o, Theirs: t, Ratio: t / o, Unit: "ms"})
	fmt.Printf("%s: %.2f ms, lvm2 %.2f ms\n", name, o, t)
}

// pair measures making and unmaking one thing, ours and theirs in turns.
func (b *bench) pair(kind string, n int, makeOurs, unmakeOurs, makeTheirs, unmakeTheirs func() error) error {
	room, err := b.room()
	if err != nil {
		return err
	}
	var times [4][]time.Duration
	for range b.pairs {
		for i, f := range []func() error{makeOurs, makeTheirs, unmakeOurs, unmakeTheirs} {
			took, err := timed(f)
			if err != nil {
				return err
			}
			times[i] = append(times[i], took)
		}
		if err := b.settled(room); err != nil {
			return err
		}
	}
	b.add(fmt.Sprintf("create_%s/volumes=%d", kind, n), times[0], times[1])
	b.add(fmt.Sprintf("delete_%s/volumes=%d", kind, n), times[2], times[3])
	return nil
}

func (b *bench) volumes(n int) error {
	var id string
	return b.pair("volume", n,
		func() (err error) { id, err = b.create("measured", volumeSize); return err },
		func() error { return b.delete(id) },
		func() error {
			return lvm("lvcreate", "-an", "-Wn", "-Zn", "-y", "-L", fmt.Sprintf("%dm", volumeSize/size.MiB), "-n", "measured", theirGroup)
		},
		func() error { return lvm("lvremove", "-y", theirGroup+"/measured") })
}

// snapshots are taken of a mounted ext4 that is idle.
func (b *bench) snapshots(n int) error {
	id, err := b.create("origin", originSize)
	if err != nil {
		return err
	}
	staging, mnt := filepath.Join(b.dir, "staging"), filepath.Join(b.dir, "mnt")
	for _, d := range []string{staging, mnt} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if _, err := b.node.NodeStageVolume(b.ctx, &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: staging, VolumeCapability: capability()}); err != nil {
		return err
	}
	dev := "/dev/" + theirGroup + "/origin"
	for _, c := range [][]string{
		{"lvcreate", "-y", "-Wn", "-Zn", "-L", fmt.Sprintf("%dm", originSize/size.MiB), "-n", "origin", theirGroup},
		{"mkfs.ext4", "-q", "-E", "lazy_itable_init=1", dev}, {"mount", dev, mnt},
	} {
		if err := lvm(c...); err != nil {
			return err
		}
	}
	var snap string
	err = b.pair("snapshot", n,
		func() error {
			s, err := b.controller.CreateSnapshot(b.ctx, &csi.CreateSnapshotRequest{Name: "measured-snap", SourceVolumeId: id})
			snap = s.GetSnapshot().GetSnapshotId()
			return err
		},
		func() error {
			_, err := b.controller.DeleteSnapshot(b.ctx, &csi.DeleteSnapshotRequest{SnapshotId: snap})
			return err
		},
		func() error {
			return lvm("lvcreate", "-y", "-s", "-L", "104m", "-n", "measured-snap", theirGroup+"/origin")
		},
		func() error { return lvm("lvremove", "-y", theirGroup+"/measured-snap") })
	if err != nil {
		return err
	}
	if _, err := b.node.NodeUnstageVolume(b.ctx, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: staging}); err != nil {
		return err
	}
	if err := b.delete(id); err != nil {
		return err
	}
	for _, c := range [][]string{{"umount", mnt}, {"lvremove", "-y", theirGroup + "/origin"}} {
		if err := lvm(c...); err != nil {
			return err
		}
	}
	return nil
}
