//go:build kernel

package lvm2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestCreateVG_inUse: CreateVG rejects a mounted disk and the name of an
// existing volume group, and Extend leaves its disks free for device-mapper.
func TestCreateVG_inUse(t *testing.T) {
	ctx := context.Background()
	disks := scratch(t, 2)
	if out, err := exec.Command("mke2fs", "-q", "-F", disks[0]).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dir := t.TempDir()
	if err := unix.Mount(disks[0], dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	err := CreateVG(ctx, kernelHost, "vg", []string{disks[1], disks[0]}, CreateOptions{})
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), disks[0]) {
		t.Errorf("a mounted disk: %v", err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	// The name is taken on another disk of this machine.
	scratch(t, 1)
	lvm(t, "vgcreate", "vg", disks[0])
	if err := CreateVG(ctx, kernelHost, "vg", disks[1:], CreateOptions{}); !errors.Is(err, ErrExists) {
		t.Errorf("a name that lvm2 uses: %v", err)
	}
	// The disks of the extended volume group are free for device-mapper.
	s := openKernelVG(t, disks[:1])
	if err := s.Extend(ctx, disks[1:]); err != nil {
		t.Fatal(err)
	}
	read(t, s)
	f, err := os.OpenFile(disks[1], os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		t.Fatalf("after Extend: %v", err)
	}
	f.Close()
}

// TestCreateVG_lvm2Uses: lvm2 activates, changes and removes a volume group,
// volumes and snapshots that this package made.
func TestCreateVG_lvm2Uses(t *testing.T) {
	ctx := context.Background()
	disks := scratch(t, 2)
	lvm(t, "pvs") // writes hints without physical volumes
	if err := CreateVG(ctx, kernelHost, "vg", disks[:1], CreateOptions{Tags: []string{"ours"}}); err != nil {
		t.Fatal(err)
	}
	healthy(t)
	for _, row := range fields(t, "pvs", "-o", "pv_name,vg_name,pe_start,pv_mda_size,pv_in_use,pv_pe_count", "--units", "m", "--nosuffix", disks[0]) {
		if want := fmt.Sprintf("%s vg 21.00 21.00 used 250", disks[0]); strings.Join(row, " ") != want {
			t.Errorf("pvs says %v, want %s", row, want)
		}
	}
	lvm(t, "pvck", disks[0])
	s := openKernelVG(t, disks[:1])
	if err := s.Extend(ctx, disks[1:]); err != nil {
		t.Fatal(err)
	}
	healthy(t)
	lvm(t, "pvck", disks[1])
	vg := locked(t, s, func(vg *VG) error {
		origin, store := linearLV("origin-1", 0, 0, 20), linearLV("snap-1", 1, 0, 5)
		origin.Segments = append(origin.Segments, Segment{Start: 20, Count: 4, Type: TypeStriped, Stripes: []Stripe{{PV: 1, Start: 100}}})
		store.Status = []string{StatusRead, StatusWrite}
		link := linearLV("snapshot0", 0, 0, 0)
		link.Segments = []Segment{{Count: 24, Type: TypeSnapshot, Snapshot: &SnapshotSegment{ChunkSize: 8, Origin: "origin-1", COWStore: "snap-1"}}}
		frozen := linearLV("frozen", 1, 50, 2)
		frozen.Status, frozen.Flags, frozen.Tags = []string{StatusRead, StatusVisible}, []string{FlagActivationSkip, FlagNoAutoActivate}, []string{"dmsnap:role=layer"}
		return errors.Join(vg.Add(origin), vg.Add(store), vg.Add(link), vg.Add(frozen))
	})
	healthy(t)
	want := "frozen -ri------k  dmsnap:role=layer\norigin-1 owi---s---  \nsnap-1 swi---s--- origin-1 "
	var got []string
	for _, row := range fields(t, "lvs", "-o", "lv_name,lv_attr,origin,lv_tags", "vg") {
		got = append(got, strings.Join(row, " "))
	}
	if strings.Join(got, "\n") != want {
		t.Errorf("lvs says\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	// A store must begin with a zero chunk before it is activated.
	d, err := openDevice(disks[1], os.O_RDWR)
	if err == nil {
		err = errors.Join(d.write(alignedBuffer(4*size.KiB), vg.Offset(vg.PVs[1], 0).Bytes()), d.file.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	lvm(t, "vgchange", "-ay", "vg")
	tables := lvm(t, "dmsetup", "table")
	for _, layer := range []string{"", "real"} {
		if name := DMName("vg", "origin-1", layer); !strings.Contains("\n"+tables, "\n"+name+":") {
			t.Errorf("no device %s in\n%s", name, tables)
		}
	}
	if uuid := DMUUID(vg.ID, vg.LV("snap-1").ID, "cow"); !strings.Contains(lvm(t, "dmsetup", "info", "-c", "--noheadings", "-o", "uuid"), uuid) {
		t.Errorf("no device with uuid %s", uuid)
	}
	if strings.Contains(tables, "frozen") {
		t.Errorf("a layer with ACTIVATION_SKIP was activated:\n%s", tables)
	}
	// Commit while the logical volumes are active.
	locked(t, s, func(vg *VG) error { return vg.Remove(vg.LV("frozen").ID) })
	lvm(t, "lvcreate", "-s", "-n", "theirs", "-L", "8m", "vg/origin-1")
	if vg := read(t, s); vg.LV("theirs") == nil || vg.LV("snapshot1") == nil {
		t.Errorf("lvm2's snapshot is missing: %s", names(vg))
	}
	lvm(t, "lvremove", "-y", "vg/snap-1", "vg/theirs")
	lvm(t, "vgremove", "-f", "-y", "vg")
	lvm(t, "pvremove", disks[0], disks[1])
	for _, disk := range disks {
		if found, err := Signature(disk); found != "" || err != nil {
			t.Errorf("%s after pvremove: %q, %v", disk, found, err)
		}
	}
}
