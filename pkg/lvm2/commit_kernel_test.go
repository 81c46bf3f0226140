//go:build kernel

package lvm2

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestCommit_lvm2VG: a volume group of lvm2 is read as lvm2 reports it,
// survives commits unchanged, and lvm2 continues with the result.
func TestCommit_lvm2VG(t *testing.T) {
	disks := scratch(t, 2)
	lvm(t, "vgcreate", "--addtag", "vgtag", "vg", disks[0], disks[1])
	for _, args := range []string{
		"-an -Zn -Wn -n base -L 64m --addtag t1 --addtag csi.k8s/x=a+b",
		"-an -Zn -Wn -n striped -i 2 -l 10",
		"-an -Zn -Wn -n multi -L 1100m",
		"-an -Zn -Wn -n gone -L 16m",
		"-s -n snap1 -L 32m -c 16k vg/base",
	} {
		args := append([]string{"lvcreate"}, strings.Fields(args)...)
		if args[1] != "-s" {
			args = append(args, "vg")
		}
		lvm(t, args...)
	}
	s := openKernelVG(t, disks)
	vg := read(t, s)
	free := Extents(0)
	for _, r := range vg.Free() {
		free += r.Count
	}
	for _, row := range fields(t, "vgs", "-o", "vg_uuid,vg_seqno,vg_free_count,vg_tags,vg_extent_size", "--units", "s", "--nosuffix", "vg") {
		if vg.ID.String() != row[0] || fmt.Sprint(vg.Seqno) != row[1] || fmt.Sprint(uint64(free)) != row[2] || strings.Join(vg.Tags, ",") != row[3] || fmt.Sprint(uint64(vg.ExtentSize)) != row[4] {
			t.Errorf("vgs says %v, we read %v, seqno %d, %d free, %v, extents of %d", row, vg.ID, vg.Seqno, free, vg.Tags, vg.ExtentSize)
		}
	}
	rows := fields(t, "lvs", "-a", "-o", "lv_name,lv_uuid,lv_size,lv_tags,lv_time", "--units", "s", "--nosuffix", "--config", "report/time_format=%s", "vg")
	for _, row := range rows {
		lv := vg.LV(strings.Trim(row[0], "[]"))
		if lv == nil || lv.ID.String() != row[1] || fmt.Sprint(uint64(vg.ExtentSize)*uint64(lv.Size())) != row[2] || strings.Join(slices.Sorted(slices.Values(lv.Tags)), ",") != row[3] || fmt.Sprint(lv.CreationTime.Unix()) != row[4] {
			t.Errorf("lvs says %v, we read %+v", row, lv)
		}
	}
	if len(rows) != len(vg.LVs)-1 { // lvs does not list the snapshot's link
		t.Errorf("lvs lists %d volumes, we read %s", len(rows), names(vg))
	}

	before := backup(t)
	locked(t, s, func(vg *VG) error { return vg.Add(linearLV("ours", vg.Free()[0].PV, vg.Free()[0].Start, 1)) })
	healthy(t)
	locked(t, s, func(vg *VG) error { return vg.Remove(vg.LV("ours").ID) })
	if after := backup(t); after != before {
		t.Errorf("the commits changed lvm2's text:\n%s\nbecame\n%s", before, after)
	}
	locked(t, s, func(vg *VG) error {
		lv := vg.LV("base").Clone()
		lv.Tags = append(lv.Tags, "dmsnap:name=x")
		return errors.Join(vg.Replace(lv), vg.Remove(vg.LV("gone").ID))
	})
	healthy(t)
	lvm(t, "lvextend", "-L", "68m", "vg/snap1")
	lvm(t, "lvrename", "vg/striped", "vg/renamed")
	lvm(t, "lvremove", "-y", "vg/multi")
	if vg := read(t, s); names(vg) != "base renamed snap1 snapshot0" || vg.LV("snap1").Size() != 17 || strings.Join(vg.LV("base").Tags, " ") != "t1 csi.k8s/x=a+b dmsnap:name=x" {
		t.Errorf("after lvm2's changes: %s", names(vg))
	}
	lvm(t, "vgremove", "-f", "-y", "vg")
	if _, err := s.Read(context.Background()); !errors.Is(err, ErrNotFound) {
		t.Errorf("after vgremove: %v", err)
	}
}

// TestCommit_1000Times: 1,000 commits wrap around the metadata area, and lvm2
// reads and writes in between.
func TestCommit_1000Times(t *testing.T) {
	disks := scratch(t, 2)
	if err := CreateVG(context.Background(), kernelHost, "vg", disks, CreateOptions{MetadataSize: 100 * size.KiB, DataAlignment: 64 * size.KiB}); err != nil {
		t.Fatal(err)
	}
	s := openKernelVG(t, disks)
	locked(t, s, addLV("a", 0, 0, 1))
	wrapped := 0
	begin := time.Now()
	for i := 1; i <= 1000; i++ {
		vg := locked(t, s, func(vg *VG) error {
			lv := vg.LV("a").Clone()
			lv.Tags = []string{fmt.Sprintf("n%d", i)}
			for range i % 20 {
				lv.Tags = append(lv.Tags, strings.Repeat("x", 50))
			}
			return vg.Replace(lv)
		})
		if c := s.areas[0].header.committed; c.offset+c.size > s.areas[0].header.size {
			wrapped++
		}
		if i%200 == 0 {
			row := fields(t, "vgs", "-o", "vg_seqno,lv_tags", "vg")[0]
			if tag, _, _ := strings.Cut(row[1], ","); row[0] != strconv.FormatUint(vg.Seqno, 10) || tag != vg.LV("a").Tags[0] {
				t.Fatalf("commit %d: vgs says seqno %s, tag %s; it is %d", i, row[0], tag, vg.Seqno)
			}
		}
		if i%400 == 0 {
			lvm(t, "lvchange", "--addtag", "theirs", "vg/a")
		}
	}
	t.Logf("%v a commit", time.Since(begin)/1000)
	if wrapped < 5 {
		t.Errorf("only %d texts wrapped around: this test shows nothing", wrapped)
	}
	healthy(t)
}

// TestCommit_concurrentWithLVM2: this package and lvm2's commands change a
// volume group concurrently, and no change is lost.
func TestCommit_concurrentWithLVM2(t *testing.T) {
	disks := scratch(t, 2)
	if err := CreateVG(context.Background(), kernelHost, "vg", disks, CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s := openKernelVG(t, disks)
	first := read(t, s).Seqno
	done := make(chan int)
	go func() {
		commits := 0
		defer func() { done <- commits }()
		for i := range 5 {
			for _, c := range []string{"lvcreate -an -Zn -Wn -n theirs%d -l 1 vg", "lvs vg", "lvchange --addtag x vg/theirs%d"} {
				if strings.Contains(c, "%d") {
					c = fmt.Sprintf(c, i)
					commits++
				}
				if out, errs, err := tryLVM(strings.Fields(c)...); err != nil || errs != "" {
					t.Errorf("%s: %v\n%s%s", c, err, out, errs)
				}
			}
		}
	}()
	ours, theirs := 0, -1
	for theirs < 0 {
		select {
		case theirs = <-done:
		default:
			locked(t, s, func(vg *VG) error {
				ours++
				if old := vg.LV(fmt.Sprintf("ours%d", ours-20)); old != nil {
					if err := vg.Remove(old.ID); err != nil {
						return err
					}
				}
				free := vg.Free()[len(vg.Free())-1]
				return vg.Add(linearLV(fmt.Sprintf("ours%d", ours), free.PV, free.Start+free.Count-1, 1))
			})
			time.Sleep(2 * time.Millisecond)
		}
	}
	vg := read(t, s)
	if vg.Seqno != first+uint64(ours+theirs) {
		t.Errorf("seqno %d after %d commits of ours and %d of lvm2's from %d on", vg.Seqno, ours, theirs, first)
	}
	if len(vg.LVs) != min(ours, 20)+5 {
		t.Errorf("there are %s", names(vg))
	}
	for i := range 5 {
		if lv := vg.LV(fmt.Sprintf("theirs%d", i)); lv == nil || strings.Join(lv.Tags, " ") != "x" {
			t.Errorf("theirs%d: %+v", i, lv)
		}
	}
	t.Logf("%d commits of ours, %d of lvm2's", ours, theirs)
	healthy(t)
}
