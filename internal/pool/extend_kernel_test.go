//go:build kernel

package pool

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// disksOf waits until the pool's group has want disks.
func disksOf(t *testing.T, p *Pool, want int) *lvm2.VG {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		v, err := p.latest()
		if err == nil && len(v.VG.PVs) == want {
			return v.VG
		}
		if time.Now().After(end) {
			t.Fatalf("the group does not have %d disks: %v, left out %v", want, err, p.outside.leftOuts())
		}
	}
}

// said waits until a device is left out for the reason why; "" for a device that is not
// left out.
func said(t *testing.T, p *Pool, device, why string) {
	t.Helper()
	var now string
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		now = ""
		for _, l := range p.outside.leftOuts() {
			if l.Device == device {
				now = l.Why
			}
		}
		if why == "" && now == "" || why != "" && strings.Contains(now, why) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the reason for %s is %q, want %q", device, now, why)
		}
	}
}

// refusals returns the conditions for refused devices in the pool's health.
func refusals(p *Pool) (said []string) {
	for _, c := range p.PoolHealth(context.Background()) {
		if c.Reason == "DiskRefused" {
			said = append(said, c.Message)
		}
	}
	return said
}

// TestExtender_diskBecomesFit: a disk that becomes fit while the pool is open is added.
// The reasons for disks that are left out are always current.
func TestExtender_diskBecomesFit(t *testing.T) {
	b := newByID(t)
	b.link("nvme-a", testDisks(t)[0], "")
	c := Config{Name: "pool", VolumeGroup: "vgfit", Devices: []string{b.pattern()}, Create: true, lookEvery: time.Second}
	ok(t, openPool(t, c).Close())
	former, named := b.loop("96M"), b.loop("96M")
	command(t, "mkfs.ext4", "-q", "-F", former)
	command(t, "mkfs.ext4", "-q", "-F", named)
	b.link("nvme-former", former, "")
	match := filepath.Join(b.dir, "nvme-former")
	c.Devices = append(c.Devices, named)
	p := openPool(t, c)
	t.Cleanup(func() {
		p.Close()
		command(t, "vgremove", "-ff", "-y", "vgfit")
	})
	said(t, p, match, "ext4")
	if got := refusals(p); len(got) != 1 || !strings.Contains(got[0], named) {
		t.Errorf("the refused devices are %q", got)
	}
	dir := t.TempDir()
	ok(t, unix.Mount(former, dir, "ext4", 0, ""))
	said(t, p, match, "in use")
	ok(t, unix.Unmount(dir, 0))
	command(t, "mkswap", "-q", "-f", former)
	said(t, p, match, "swap")
	command(t, "wipefs", "-qa", former)
	command(t, "wipefs", "-qa", named)
	disksOf(t, p, 3)
	said(t, p, match, "")
	said(t, p, named, "")
	if got := refusals(p); len(got) > 0 {
		t.Errorf("after the disks were added, the refused devices are %q", got)
	}
	must(p.CreateVolume(context.Background(), VolumeSpec{Name: "v", Size: 8 * size.MiB, Mode: Block}))(t)
	noFindings(t, p)
}

// TestExtender_diskMissing: no disk is added while another is missing, because the
// metadata cannot be changed then. The pool notices both when devices come or go.
func TestExtender_diskMissing(t *testing.T) {
	disks := testDisks(t)
	hot := newHotDisk(t)
	b := newByID(t)
	b.link("nvme-a", disks[0], "")
	p := openPool(t, Config{Name: "pool", VolumeGroup: "vgwait", Devices: []string{b.pattern(), "/dev/sd*"}, Create: true, lookEvery: time.Hour})
	t.Cleanup(func() {
		p.Close()
		command(t, "vgremove", "-ff", "-y", "vgwait")
	})
	disksOf(t, p, 2)
	hot.remove()
	late := b.loop("96M")
	for end := time.Now().Add(30 * time.Second); must(p.latest())(t).Writable() == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the pool does not notice that a disk is missing")
		}
	}
	b.link("nvme-late", late, "")
	said(t, p, filepath.Join(b.dir, "nvme-late"), "is missing")
	time.Sleep(blankFor)
	disksOf(t, p, 2)
	hot.attach()
	disksOf(t, p, 3)
	noFindings(t, p)
}
