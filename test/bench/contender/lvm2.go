package contender

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/disk"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/figures"
)

// lvm2 is a volume group that is used by lvm2's commands.
type lvm2 struct {
	group string
	disk  disk.Disk
	dir   string // the directory of mount points
}

// makeGroup makes the volume group, with a metadata area as the driver's pools
// have it.
func makeGroup(group string, d disk.Disk, dir string) (lvm2, error) {
	g := lvm2{group, d, filepath.Join(dir, group)}
	return g, g.Fill(0, 0)
}

// Fill adds the volumes with the numbers from <= i < to, as plain logical
// volumes made by the pool package. So the metadata that lvm2's commands read
// has the same length as the driver's.
func (g lvm2) Fill(from, to int) error {
	ctx := context.Background()
	p, err := pool.Open(ctx, pool.Config{Name: g.group, Devices: []string{string(g.disk)}, Create: true}, pool.Options{})
	if err != nil {
		return err
	}
	for i := from; i < to; i++ {
		spec := pool.VolumeSpec{Name: FillName(i), Size: FillSize, Mode: pool.Filesystem, FSType: "ext4"}
		if _, err := p.CreateVolume(ctx, spec); err != nil {
			return err
		}
	}
	return p.Close()
}

// FillSize is the length of the volumes that only fill the group.
const FillSize = 64 * size.MiB

// FillName returns the name of one of these volumes.
func FillName(i int) string { return fmt.Sprintf("pvc-%08d-1111-2222-3333-444444444444", i) }

func (g lvm2) Disk() disk.Disk { return g.disk }

func (g lvm2) lv(name string) string     { return g.group + "/" + name }
func (g lvm2) device(name string) string { return "/dev/" + g.lv(name) }
func (g lvm2) mountPoint(volume string) string {
	return filepath.Join(g.dir, volume)
}

func (g lvm2) Delete(volume string) error { return command("lvremove", "-y", g.lv(volume)) }

func (g lvm2) Attach(volume string) (string, error) {
	return g.device(volume), command("lvchange", "-ay", "-K", g.lv(volume))
}

func (g lvm2) Detach(volume string) error { return command("lvchange", "-an", g.lv(volume)) }

func (g lvm2) Mount(volume string) (string, error) {
	if _, err := g.Attach(volume); err != nil {
		return "", err
	}
	return g.mountPoint(volume), mountExt4(g.device(volume), g.mountPoint(volume))
}

func (g lvm2) Unmount(volume string) error { return unmount(g.mountPoint(volume)) }

func (g lvm2) DeleteSnapshot(_, snapshot string) error {
	return command("lvremove", "-y", g.lv(snapshot))
}

// Clear deactivates all devices first: with many active snapshots each removal
// would suspend all of them.
func (g lvm2) Clear(volume string, snapshots []string) error {
	if err := g.Detach(volume); err != nil {
		return err
	}
	args := []string{"lvremove", "-y"}
	for _, s := range snapshots {
		args = append(args, g.lv(s))
	}
	return command(append(args, g.lv(volume))...)
}

// Parallel is lvm2's snapshots. All snapshots of a volume are active, and each
// overwrite is copied into every one.
type Parallel struct {
	lvm2
	chunk size.Bytes
}

// NewParallel makes the volume group on the disk. chunk is the chunk size of
// snapshots.
func NewParallel(d disk.Disk, dir string, chunk size.Bytes) (*Parallel, error) {
	g, err := makeGroup("theirs", d, dir)
	return &Parallel{g, chunk}, err
}

func (p *Parallel) Title() string { return figures.LVM2 }

func (p *Parallel) Create(volume string, length size.Bytes, _ bool) error {
	return command("lvcreate", "-an", "-Wn", "-Zn", "-y", "-L", mebibytes(length), "-n", volume, p.group)
}

func (p *Parallel) Snapshot(volume, snapshot string, store size.Bytes) error {
	return command("lvcreate", "-y", "-s", "-c", fmt.Sprintf("%dk", p.chunk/size.KiB), "-L", mebibytes(store), "-n", snapshot, p.lv(volume))
}

// Pooled is lvm2's thin volumes, which share the blocks of a common pool by
// reference counts.
type Pooled struct {
	lvm2
}

const thinPool = "pool"

// NewPooled makes the volume group and its thin pool on the disk. It returns an
// error if the kernel does not have the target.
func NewPooled(d disk.Disk, dir string, length size.Bytes) (*Pooled, error) {
	if err := hasTarget("thin-pool"); err != nil {
		return nil, err
	}
	g, err := makeGroup("thin", d, dir)
	if err != nil {
		return nil, err
	}
	return &Pooled{g}, command("lvcreate", "-y", "--type", "thin-pool", "-L", mebibytes(length), "-c", "64k",
		"--poolmetadatasize", "256m", "-n", thinPool, g.group)
}

func hasTarget(name string) error {
	c, err := dm.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.TargetVersion(name); err != nil {
		return fmt.Errorf("this kernel has no device-mapper target %s: %w", name, err)
	}
	return nil
}

func (p *Pooled) Title() string { return figures.Thin }

func (p *Pooled) Create(volume string, length size.Bytes, _ bool) error {
	return command("lvcreate", "-an", "-Wn", "-y", "-V", mebibytes(length), "--thinpool", thinPool, "-n", volume, p.group)
}

func (p *Pooled) Snapshot(volume, snapshot string, _ size.Bytes) error {
	return command("lvcreate", "-y", "-s", "-n", snapshot, p.lv(volume))
}
