// Package audit checks the disks and the kernel after a test has interrupted a
// pool. There must be nothing but what the pool's volumes and snapshots need.
package audit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

const (
	settleLimit = 90 * time.Second      // how long copying and wiping may take to end
	settlePause = 30 * time.Millisecond // between two looks, which also take the driver's time
)

// ErrHung is returned when background work does not end.
var ErrHung = errors.New("copying or wiping does not end")

// Listing is what the pool itself lists.
type Listing struct {
	Volumes   []pool.Volume
	Snapshots []pool.Snapshot
	Foreign   []string // logical volumes of LVM2's own, which may be in the group
}

// Audit is what is on the disks and in the kernel once background work has
// ended.
type Audit struct {
	Listing
	VG      *lvm2.VG
	Devices map[string]dm.Info // the group's devices by name
}

// Take waits until nothing is being copied or wiped, and then checks the group.
// Each logical volume and each device must have a reason, no device may be
// suspended, and vgck must print nothing. Devices of a layer that has just been
// folded may remain for as long as steady.
//
// Errors: ErrHung if the background work does not end.
func Take(ctx context.Context, group string, disks []string, list func() (Listing, error), steady time.Duration) (*Audit, error) {
	var a *Audit
	for deadline := (time.Time{}); ; time.Sleep(20 * time.Millisecond) {
		var stray []string
		err := Settled(ctx, group, disks, func(vg *lvm2.VG) (err error) {
			a = &Audit{VG: vg}
			if a.Listing, err = list(); err != nil {
				return fmt.Errorf("listing: %w", err)
			}
			layers, err := a.checkVolumes()
			if err != nil {
				return err
			}
			stray, err = a.readDevices(layers, steady)
			return err
		})
		if err != nil {
			return nil, err
		}
		if len(stray) == 0 {
			return a, a.check()
		}
		if deadline.IsZero() {
			deadline = time.Now().Add(steady)
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("stray devices %v", stray)
		}
	}
}

// Settled waits until nothing is being copied or wiped, and no flat store is
// half-made or left over from an earlier reader. It then calls look with the
// metadata. It holds LVM2's lock meanwhile, so that folding in the background
// does not change the metadata.
func Settled(ctx context.Context, group string, disks []string, look func(*lvm2.VG) error) error {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	store, err := lvm2.OpenVG(ctx, lvm2.Host{}, group, disks)
	if err != nil {
		return fmt.Errorf("reading the volume group: %w", err)
	}
	defer store.Close()
	for {
		done, err := settled(ctx, store, group, look)
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ErrHung, err)
		}
		if done || err != nil {
			return err
		}
		select {
		case <-time.After(settlePause):
		case <-ctx.Done():
			return ErrHung
		}
	}
}

// settled calls look with LVM2's lock held, unless something is still being
// done in the background. It reports whether it called look.
func settled(ctx context.Context, store *lvm2.Store, group string, look func(*lvm2.VG) error) (bool, error) {
	lock, err := lvm2.Host{}.LockVG(ctx, group, lvm2.Shared)
	if err != nil {
		return false, err
	}
	defer lock.Unlock()
	vg, err := store.Read(ctx)
	if err != nil {
		return false, err
	}
	through, flats := readThrough(vg), map[string]int{} // each snapshot may have one flat store
	if slices.ContainsFunc(vg.LVs, func(lv *lvm2.LV) bool {
		t := Tags(lv)
		if t["role"] == "flat" {
			flats[t["reads"]]++
			return t["used"] == "" || !through[t["reads"]] || flats[t["reads"]] > 1
		}
		return t["copy"] != "" || t["copying"] != "" || t["lent"] != "" || t["role"] == "trash"
	}) {
		return false, nil
	}
	return true, look(vg)
}

// idInTag restores the bytes that an id may have and the value of a tag may
// not.
var idInTag = strings.NewReplacer("=21", "!", "=23", "#")

// Tags returns the pool's tags of a logical volume.
func Tags(lv *lvm2.LV) map[string]string {
	t := map[string]string{}
	for _, tag := range lv.Tags {
		if rest, ours := strings.CutPrefix(tag, "dmsnap:"); ours {
			key, value, _ := strings.Cut(rest, "=")
			t[key] = idInTag.Replace(value)
		}
	}
	return t
}

// Names formats logical volumes with their tags, for messages.
func Names(lvs []*lvm2.LV) string {
	var out []string
	for _, lv := range lvs {
		out = append(out, fmt.Sprintf("%s %v", lv.Name, lv.Tags))
	}
	return strings.Join(out, "; ")
}

// Empty returns an error unless the group has no logical volume and no device.
func (a *Audit) Empty() error {
	if len(a.VG.LVs) != 0 || len(a.Devices) != 0 {
		return fmt.Errorf("everything was deleted, but logical volumes %s and devices %v are left", Names(a.VG.LVs), slices.Sorted(maps.Keys(a.Devices)))
	}
	return nil
}

// Active reports whether the volume has its device.
func (a *Audit) Active(lv string) bool {
	_, there := a.Devices[lvm2.DMName(a.VG.Name, lv, "")]
	return there
}

func has(lv *lvm2.LV, key string) bool { return slices.Contains(lv.Tags, "dmsnap:"+key) }

// number returns the value of a tag as a number, or -1, which no tag has, if
// the value is not a number.
func number(lv *lvm2.LV, key string) int64 {
	n, err := strconv.ParseInt(Tags(lv)[key], 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// check runs vgck, which must find no fault and print nothing.
func (a *Audit) check() error {
	if out, err := exec.Command("vgck", a.VG.Name).CombinedOutput(); err != nil || len(out) > 0 {
		return fmt.Errorf("vgck: %w\n%s", err, out)
	}
	return nil
}

// Extents compares lvm2's count of free extents with the extents that the
// logical volumes leave.
func (a *Audit) Extents() error {
	out, err := exec.Command("vgs", "--noheadings", "-o", "vg_seqno,vg_extent_count,vg_free_count", a.VG.Name).CombinedOutput()
	if err != nil {
		return fmt.Errorf("vgs: %w\n%s", err, out)
	}
	var seqno uint64
	var total, free, used lvm2.Extents
	if _, err := fmt.Sscan(string(out), &seqno, &total, &free); err != nil {
		return fmt.Errorf("vgs: %w\n%s", err, out)
	}
	for _, lv := range a.VG.LVs {
		if s := lv.Segments[0]; s.Snapshot == nil && s.Type != lvm2.TypeError {
			used += lv.Size()
		}
	}
	if seqno == a.VG.Seqno && total-free != used {
		return fmt.Errorf("lvm2 counts %d of %d extents as allocated, but the logical volumes have %d: %s", total-free, total, used, Names(a.VG.LVs))
	}
	return nil
}
