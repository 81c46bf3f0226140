//go:build kernel

package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

const (
	soon     = 5 * time.Second // within which calls that need no hanging disk answer
	deadline = 8 * time.Second // of calls that need it
)

// stallingDisk is a disk that stops answering while it is suspended.
type stallingDisk struct {
	t    *testing.T
	name string
}

func newStallingDisk(t *testing.T, name, disk string) *stallingDisk {
	t.Helper()
	d := &stallingDisk{t, name}
	sectors, err := exec.Command("blockdev", "--getsz", disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(sectors)))
	if err != nil {
		t.Fatal(err)
	}
	const hidden = 2048 // sectors; otherwise lvm2 would see the physical volume on both devices
	d.run("create", name, "--table", fmt.Sprintf("0 %d linear %s %d", n-hidden, disk, hidden))
	t.Cleanup(func() { d.run("remove", "--retry", name) })
	return d
}

func (d *stallingDisk) run(args ...string) {
	d.t.Helper()
	if out, err := exec.Command("dmsetup", args...).CombinedOutput(); err != nil {
		d.t.Errorf("dmsetup %v: %v: %s", args, err, out)
	}
}

func (d *stallingDisk) path() string { return "/dev/mapper/" + d.name }
func (d *stallingDisk) hang()        { d.run("suspend", "--noflush", "--nolockfs", d.name) }
func (d *stallingDisk) answer()      { d.run("resume", d.name) }

// calls returns a call of each kind for a staged and published volume with a
// snapshot.
func (r *rig) calls(poolName, volume, snapshot string) map[string]func(context.Context) error {
	ext4 := mount(writer, "ext4")
	at := "of-" + poolName
	return map[string]func(context.Context) error{
		"create volume": func(ctx context.Context) error {
			q := request("new-"+poolName, 32, ext4)
			q.Parameters = map[string]string{"pool": poolName}
			_, err := r.CreateVolume(ctx, q)
			return err
		},
		"restore": func(ctx context.Context) error {
			q := request("restored-"+poolName, 64, ext4)
			q.Parameters, q.VolumeContentSource = map[string]string{"pool": poolName}, fromSnapshot(snapshot)
			_, err := r.CreateVolume(ctx, q)
			return err
		},
		"delete volume": func(ctx context.Context) error {
			_, err := r.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: "v1:node-1:" + poolName + ":spare-" + poolName})
			return err
		},
		"create snapshot": func(ctx context.Context) error {
			_, err := r.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "other-" + poolName, SourceVolumeId: "v1:node-1:" + poolName + ":snapped-" + poolName})
			return err
		},
		"delete snapshot": func(ctx context.Context) error {
			_, err := r.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: "v1:node-1:" + poolName + ":gone-" + poolName})
			return err
		},
		"expand": func(ctx context.Context) error {
			_, err := r.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: "v1:node-1:" + poolName + ":small-" + poolName, CapacityRange: &csi.CapacityRange{RequiredBytes: 96 << 20}, VolumeCapability: ext4})
			return err
		},
		"stage": func(ctx context.Context) error {
			_, err := r.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: "v1:node-1:" + poolName + ":idle-" + poolName, StagingTargetPath: r.path("idle-" + poolName), VolumeCapability: ext4})
			return err
		},
		"unstage": func(ctx context.Context) error {
			_, err := r.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: "v1:node-1:" + poolName + ":staged-" + poolName, StagingTargetPath: r.path("staged-" + poolName)})
			return err
		},
		"publish": func(ctx context.Context) error {
			_, err := r.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{VolumeId: volume, StagingTargetPath: r.path("staging-" + at), TargetPath: r.path("second-" + at), VolumeCapability: ext4})
			if err != nil {
				return err
			}
			_, err = r.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: volume, TargetPath: r.path("second-" + at)})
			return err
		},
	}
}

// answers returns the calls that ask for a state, of all pools or of one volume.
func (r *rig) answers(volume, target string) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"probe":        func(ctx context.Context) error { _, err := r.Probe(ctx, &csi.ProbeRequest{}); return err },
		"node info":    func(ctx context.Context) error { _, err := r.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{}); return err },
		"list volumes": func(ctx context.Context) error { _, err := r.ListVolumes(ctx, &csi.ListVolumesRequest{}); return err },
		"list snapshots": func(ctx context.Context) error {
			_, err := r.ListSnapshots(ctx, &csi.ListSnapshotsRequest{})
			return err
		},
		"capacity": func(ctx context.Context) error {
			_, err := r.GetCapacity(ctx, &csi.GetCapacityRequest{})
			return err
		},
		"get volume": func(ctx context.Context) error {
			_, err := r.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: volume})
			return err
		},
		"volume health": func(ctx context.Context) error {
			_, err := r.NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{VolumeId: volume})
			return err
		},
		"health of all": func(ctx context.Context) error {
			_, err := r.ControllerListVolumeHealth(ctx, &csi.ControllerListVolumeHealthRequest{})
			return err
		},
		"storage health": func(ctx context.Context) error {
			_, err := r.NodeGetStorageHealth(ctx, &csi.NodeGetStorageHealthRequest{})
			return err
		},
		"volume stats": func(ctx context.Context) error {
			_, err := r.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: volume, VolumePath: r.path(target)})
			return err
		},
		"metrics": func(context.Context) error {
			registry := prometheus.NewPedanticRegistry()
			registry.MustRegister(metrics{r.pools})
			_, err := registry.Gather()
			return err
		},
	}
}

// timed makes calls at the same time, and checks each result with its time.
func (r *rig) timed(calls map[string]func(context.Context) error, check func(what string, err error, took time.Duration)) {
	r.t.Helper()
	var all sync.WaitGroup
	for what, call := range calls {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), deadline)
			defer cancel()
			began := time.Now()
			ended := make(chan error, 1)
			go func() { ended <- call(ctx) }()
			select {
			case err := <-ended:
				check(what, err, time.Since(began))
			case <-time.After(deadline + 5*time.Second):
				r.t.Errorf("%s does not end", what)
			}
		})
	}
	all.Wait()
}

// usePool makes the volumes that calls uses, and returns the volume and its snapshot.
func (r *rig) usePool(name string) (volume, snapshot string) {
	r.t.Helper()
	ext4 := mount(writer, "ext4")
	in := func(volume string) string {
		q := request(volume+"-"+name, 64, ext4)
		q.Parameters = map[string]string{"pool": name}
		return r.volume(q)
	}
	volume = in("main")
	r.must("stage", r.stage(volume, "staging-of-"+name, ext4))
	r.must("publish", r.publish(volume, "staging-of-"+name, "target-of-"+name, ext4, false))
	r.must("publish", r.publish(volume, "staging-of-"+name, "extra-of-"+name, ext4, false))
	r.write("target-of-"+name, "before")
	snapshot = r.snapshot("snap-"+name, volume)
	r.snapshot("gone-"+name, volume)
	for _, other := range []string{"spare", "idle", "snapped", "small"} {
		in(other)
	}
	r.must("stage", r.stage(in("staged"), "staged-"+name, ext4))
	return volume, snapshot
}

// TestHang_onePool: while the disk of one pool does not answer, all calls for the other pool and all
// questions about the node answer soon. Calls for the hanging pool end with their
// deadline, and say which disk does not answer. The driver can be stopped and started
// meanwhile. When the disk answers again, everything continues.
func TestHang_onePool(t *testing.T) {
	disk := newStallingDisk(t, "stalling", scratch(t)[1])
	r := rigOf(t, pool.Config{Name: "one", VolumeGroup: "vgone", Devices: scratch(t)[:1]},
		pool.Config{Name: "two", VolumeGroup: "vgtwo", Devices: []string{disk.path()}})
	a, s1 := r.usePool("one")
	b, s2 := r.usePool("two")
	disk.hang()
	t.Cleanup(disk.answer) // before the rig's own cleanup
	time.Sleep(2 * time.Second)

	r.timed(r.answers(a, "target-of-one"), func(what string, err error, took time.Duration) {
		if err != nil || took > soon {
			t.Errorf("%s: %v after %v", what, err, took)
		}
	})
	r.timed(r.calls("one", a, s1), func(what string, err error, took time.Duration) {
		if err != nil || took > soon {
			t.Errorf("%s of the other pool: %v after %v", what, err, took)
		}
	})
	r.timed(r.calls("two", b, s2), func(what string, err error, took time.Duration) {
		t.Logf("%s of the hanging pool: %v after %v", what, err, took)
		if err == nil {
			return // it needs no disk
		}
		if text := status.Convert(err).Message(); status.Code(err) != codes.DeadlineExceeded || !strings.Contains(text, filepath.Base(disk.path())) {
			t.Errorf("%s: %q does not say which disk does not answer", what, text)
		}
	})
	of := r.answers(b, "target-of-two")
	of["unpublish"] = func(context.Context) error { return r.unpublish(b, "extra-of-two") }
	r.timed(of, func(what string, err error, took time.Duration) {
		if err != nil || took > soon {
			t.Errorf("%s of the hanging pool: %v after %v", what, err, took)
		}
	})
	storage, err := r.NodeGetStorageHealth(t.Context(), &csi.NodeGetStorageHealthRequest{})
	if text := storage.String(); err != nil || !strings.Contains(text, "DiskNotAnswering") || !strings.Contains(text, "pool two") {
		t.Errorf("storage health: %v, %v", storage, err)
	}

	began := time.Now()
	r.hangs = true
	r.stop()
	r.hangs = false
	t.Logf("stopped in %v", time.Since(began))
	if took := time.Since(began); took > 50*time.Second {
		t.Errorf("the driver stopped after %v", took)
	}
	began = time.Now()
	r.start()
	t.Logf("started in %v", time.Since(began))
	q := request("after-restart", 32, mount(writer, "ext4"))
	q.Parameters = map[string]string{"pool": "one"}
	r.volume(q)
	_, err = r.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: b})
	r.want("get volume of the pool that is not open", err, codes.Unavailable)

	disk.answer()
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		_, err := r.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: b})
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the pool does not open: %v", err)
		}
	}
	r.finish("two", b)
	r.finish("one", a)
}

// TestHang_oneDiskOfTwo: while one of two disks of a pool does not answer, pods continue
// to use the volumes on the other disk, and questions are answered. A call that changes
// the metadata ends with its deadline, because the metadata is on both disks. When the
// disk answers again, everything continues.
func TestHang_oneDiskOfTwo(t *testing.T) {
	good, disk := newStallingDisk(t, "good", scratch(t)[0]), newStallingDisk(t, "stalling", scratch(t)[1])
	r := rigOf(t, pool.Config{Name: "one", VolumeGroup: "vgone", Devices: []string{good.path(), disk.path()}}) // volumes are on the first
	a, s := r.usePool("one")
	ext4 := mount(writer, "ext4")
	free := r.volume(request("free", 64, ext4)) // without a snapshot: a snapshot's store may be on the other disk
	r.must("stage", r.stage(free, "staging-free", ext4))
	r.must("publish", r.publish(free, "staging-free", "target-free", ext4, false))
	disk.hang()
	t.Cleanup(disk.answer)
	time.Sleep(2 * time.Second)

	calls := r.answers(a, "target-of-one")
	calls["a pod's write"] = func(context.Context) error {
		f, err := os.Create(filepath.Join(r.path("target-free"), "file"))
		if err != nil {
			return err
		}
		_, err = f.WriteString("meanwhile")
		return errors.Join(err, f.Sync(), f.Close())
	}
	calls["unpublish"] = func(context.Context) error { return r.unpublish(a, "extra-of-one") }
	r.timed(calls, func(what string, err error, took time.Duration) {
		if err != nil || took > soon {
			t.Errorf("%s: %v after %v", what, err, took)
		}
	})
	r.read("target-free", "meanwhile")
	r.timed(r.calls("one", a, s), func(what string, err error, took time.Duration) {
		t.Logf("%s: %v after %v", what, err, took)
		if err != nil && (status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), filepath.Base(disk.path()))) {
			t.Errorf("%s: %v does not say which disk does not answer", what, err)
		}
	})
	disk.answer()
	r.finish("one", a)
	r.must("unpublish", r.unpublish(free, "target-free"))
	r.must("unstage", r.unstage(free, "staging-free"))
}

// finish repeats the calls of a pool whose disk answers again, and checks the data.
func (r *rig) finish(name, volume string) {
	t := r.t
	t.Helper()
	ext4 := mount(writer, "ext4")
	for what, call := range r.calls(name, volume, "v1:node-1:"+name+":snap-"+name) {
		if what == "restore" || what == "publish" {
			continue
		}
		for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
			err := call(t.Context())
			if err == nil {
				break
			}
			if time.Now().After(end) {
				t.Errorf("%s of pool %s, with a disk that answers: %v", what, name, err)
				break
			}
		}
	}
	r.must("publish", r.publish(volume, "staging-of-"+name, "again-"+name, ext4, false))
	r.read("again-"+name, "before")
	f, err := os.Open(filepath.Join(r.path("again-"+name), "file"))
	r.must("open", err)
	_, err = io.Copy(io.Discard, f)
	r.must("read", err)
	f.Close()
	for _, target := range []string{"again-" + name, "extra-of-" + name, "target-of-" + name} {
		r.must("unpublish", r.unpublish(volume, target))
	}
	r.must("unstage", r.unstage(volume, "staging-of-"+name))
	r.must("unstage", r.unstage("v1:node-1:"+name+":idle-"+name, "idle-"+name))
	r.must("unstage", r.unstage("v1:node-1:"+name+":staged-"+name, "staged-"+name))
}
