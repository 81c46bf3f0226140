package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
)

// run takes a volume through its life, and checks each step.
func (d *demo) run() {
	empty := d.free()
	base := d.create("base", gib, nil)
	staging, target := d.publish(base)

	d.say("Write files into the volume")
	written := d.write(target, "before", 20)
	d.check(len(written) == 20, "20 files of 1 MiB written and synced")

	d.say("Take a snapshot while a program continues to write")
	acknowledged, stopWriter := d.keepWriting(target)
	for acknowledged.Load() < 20 {
		time.Sleep(5 * time.Millisecond)
	}
	certain := acknowledged.Load()
	began := time.Now()
	snap := must(d.controller.CreateSnapshot(d.ctx, &csi.CreateSnapshotRequest{Name: "snap", SourceVolumeId: base})).GetSnapshot()
	took := time.Since(began)
	after := acknowledged.Load()
	for acknowledged.Load() < after+20 {
		time.Sleep(5 * time.Millisecond)
	}
	stopWriter()
	d.check(snap.GetReadyToUse() && snap.GetSizeBytes() == gib, "snapshot %s is ready after %v; the writer never stopped (%d records before, %d at the end)",
		snap.GetSnapshotId(), took.Round(time.Millisecond), certain, acknowledged.Load())

	d.say("Show the four devices of the kernel's document, with its names")
	d.kernelDocument()

	d.say("Overwrite everything in the volume")
	for name := range written {
		must(0, os.WriteFile(filepath.Join(target, name), []byte(strings.Repeat("overwritten ", 1<<20/12)), 0o600))
	}
	unix.Sync()
	d.check(len(d.compare(target, written)) == len(written), "no file has its old content any more")
	show("dmsetup status " + group + "-snap")

	d.say("Look at the volume and its snapshot with LVM2's own tools")
	out := show("vgck " + group + " && lvs -o lv_name,lv_attr,lv_size,origin,data_percent " + group)
	d.check(strings.Contains(out, "owi-aos---") && strings.Contains(out, "swi-a-s---"), "LVM2 shows an origin and its snapshot, as if lvcreate -s had made them")

	d.say("Restore the snapshot to a new volume")
	restored := d.create("restored", 0, &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
		Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: snap.GetSnapshotId()}}})
	rStaging, rTarget := d.publish(restored)
	d.check(len(d.compare(rTarget, written)) == 0, "all 20 files have the checksums from before the snapshot")
	d.checkRecords(rTarget, certain, after)

	d.say("Expand the volume to 1.5 GiB while it is mounted and has a snapshot")
	expanded := must(d.controller.ControllerExpandVolume(d.ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: base, CapacityRange: &csi.CapacityRange{RequiredBytes: gib * 3 / 2}, VolumeCapability: capability()}))
	d.check(expanded.GetCapacityBytes() == gib*3/2 && expanded.GetNodeExpansionRequired(), "the volume has the additional extents")
	must(d.node.NodeExpandVolume(d.ctx, &csi.NodeExpandVolumeRequest{VolumeId: base, VolumePath: target, StagingTargetPath: staging,
		CapacityRange: &csi.CapacityRange{RequiredBytes: gib * 3 / 2}, VolumeCapability: capability()}))
	show("df -h " + target)
	var fs unix.Statfs_t
	must(0, unix.Statfs(target, &fs))
	d.check(int64(fs.Blocks)*fs.Bsize > gib*5/4, "the file system has grown with it")
	table := show("dmsetup table | grep " + group + "- | sort")
	d.check(strings.Contains(table, group+"-snap: 0 2097152 snapshot") && strings.Contains(table, group+"-base: 0 3145728 snapshot-origin"), "the snapshot keeps its size")

	d.say("Delete everything")
	d.unpublish(restored, rStaging, rTarget)
	d.unpublish(base, staging, target)
	for _, id := range []string{base, restored} {
		must(d.controller.DeleteVolume(d.ctx, &csi.DeleteVolumeRequest{VolumeId: id}))
	}
	left := must(d.controller.ListSnapshots(d.ctx, &csi.ListSnapshotsRequest{})).GetEntries()
	d.check(len(left) == 1, "the snapshot outlives its volume")
	must(d.controller.DeleteSnapshot(d.ctx, &csi.DeleteSnapshotRequest{SnapshotId: snap.GetSnapshotId()}))
	for end := time.Now().Add(time.Minute); d.free() != empty && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
	}
	d.check(d.free() == empty, "the blocks are wiped and free again: %d MiB, as at the start", empty>>20)
	out = show("lvs --noheadings " + group + " | wc -l")
	d.check(strings.TrimSpace(out) == "0", "the volume group is empty")
	// The kernel removes the device of wiped trash a moment after the metadata is committed.
	for end := time.Now().Add(10 * time.Second); strings.Contains(devices(), group) && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
	}
	out = show("dmsetup table")
	d.check(!strings.Contains(out, group), "no device is left")
}

// parameters are the parameters of a StorageClass for the pool.
var parameters = map[string]string{"pool": "fast"}

func capability() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType}},
	}
}

// free returns the room for volumes, in bytes.
func (d *demo) free() int64 {
	return must(d.controller.GetCapacity(d.ctx, &csi.GetCapacityRequest{Parameters: parameters})).GetAvailableCapacity()
}

// devices lists the names of the kernel's devices.
func devices() string {
	return string(must(exec.Command("dmsetup", "ls").Output()))
}

func (d *demo) create(name string, bytes int64, source *csi.VolumeContentSource) string {
	if source == nil {
		d.say("Create volume %q of %d MiB", name, bytes>>20)
	}
	r := &csi.CreateVolumeRequest{Name: name, VolumeCapabilities: []*csi.VolumeCapability{capability()}, VolumeContentSource: source, Parameters: parameters}
	if bytes > 0 {
		r.CapacityRange = &csi.CapacityRange{RequiredBytes: bytes}
	}
	began := time.Now()
	v := must(d.controller.CreateVolume(d.ctx, r)).GetVolume()
	d.check(v.GetCapacityBytes() == gib, "volume %s of %d MiB is created after %v", v.GetVolumeId(), v.GetCapacityBytes()>>20, time.Since(began).Round(time.Millisecond))
	return v.GetVolumeId()
}

// publish stages and publishes a volume as the kubelet does.
func (d *demo) publish(id string) (staging, target string) {
	name := id[strings.LastIndexAny(id, ":/")+1:]
	staging, target = filepath.Join(d.dir, "staging", name), filepath.Join(d.dir, "pods", name)
	must(0, os.MkdirAll(staging, 0o700))
	must(0, os.MkdirAll(filepath.Dir(target), 0o700))
	must(d.node.NodeStageVolume(d.ctx, &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: staging, VolumeCapability: capability()}))
	must(d.node.NodePublishVolume(d.ctx, &csi.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: staging, TargetPath: target, VolumeCapability: capability()}))
	mounted := exec.Command("mountpoint", "-q", target).Run() == nil
	d.check(mounted, "staged (%s) and published at %s", fsType, target)
	return staging, target
}

func (d *demo) unpublish(id, staging, target string) {
	must(d.node.NodeUnpublishVolume(d.ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target}))
	must(d.node.NodeUnstageVolume(d.ctx, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: staging}))
}

// write creates files with random content of 1 MiB each and returns their
// checksums.
func (d *demo) write(dir, prefix string, files int) map[string][32]byte {
	sums := map[string][32]byte{}
	random := must(os.Open("/dev/urandom"))
	defer random.Close()
	buf := make([]byte, 1<<20)
	for i := range files {
		must(random.Read(buf))
		name := fmt.Sprintf("%s-%02d", prefix, i)
		must(0, os.WriteFile(filepath.Join(dir, name), buf, 0o600))
		sums[name] = sha256.Sum256(buf)
	}
	unix.Sync()
	return sums
}

// compare returns the names of the files whose checksums differ from sums.
func (d *demo) compare(dir string, sums map[string][32]byte) []string {
	var differ []string
	for name, sum := range sums {
		if content, err := os.ReadFile(filepath.Join(dir, name)); err != nil || sha256.Sum256(content) != sum {
			differ = append(differ, name)
		}
	}
	return differ
}

// keepWriting appends numbered records to a journal until stop is called. It
// syncs a record before it counts the record as acknowledged.
func (d *demo) keepWriting(dir string) (acknowledged *atomic.Int64, stop func()) {
	acknowledged = new(atomic.Int64)
	journal := must(os.OpenFile(filepath.Join(dir, "journal"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600))
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for n := int64(0); ; n++ {
			select {
			case <-quit:
				return
			default:
			}
			must(fmt.Fprintf(journal, "%019d\n", n))
			must(0, journal.Sync())
			acknowledged.Store(n + 1)
		}
	}()
	return acknowledged, func() {
		close(quit)
		<-ended
		journal.Close()
	}
}

// checkRecords checks the journal of a restored volume. It must have no gap,
// all records that were acknowledged before the snapshot, and none from after
// it.
func (d *demo) checkRecords(dir string, certain, most int64) {
	text := must(os.ReadFile(filepath.Join(dir, "journal")))
	n := int64(0)
	for ; int64(len(text)) >= (n+1)*20; n++ {
		if string(text[n*20:(n+1)*20]) != fmt.Sprintf("%019d\n", n) {
			fail("record %d of the restored journal is damaged", n)
		}
	}
	d.check(n >= certain && n <= most+1, "the journal has %d records: all that were acknowledged before the snapshot (%d), and none from after it", n, certain)
}

// kernelDocument prints the devices in the form of the kernel's snapshot
// document and compares them with the example there.
func (d *demo) kernelDocument() {
	table := show("dmsetup table|grep " + group)
	show("ls -lL /dev/mapper/" + group + "-*")
	want := map[string]string{
		"base-real": "0 2097152 linear", "snap-cow": "0 204800 linear", "snap": "0 2097152 snapshot", "base": "0 2097152 snapshot-origin",
	}
	lines := strings.Split(strings.TrimSpace(table), "\n")
	d.check(len(lines) == len(want), "four devices")
	for name, begins := range want {
		d.check(strings.Contains("\n"+table, "\n"+group+"-"+name+": "+begins+" "), "%s-%s: %s", group, name, begins)
	}
	d.check(strings.Contains(table, " P 16"), "a persistent store with chunks of 16 sectors")
}
