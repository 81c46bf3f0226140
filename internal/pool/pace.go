package pool

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	idleWindow = size.GiB      // largest window while nobody else uses the disks
	idleTime   = time.Second   // time that copying the largest window should take: nobody checks for other users before its end
	busyWindow = 16 * size.MiB // window while others use the disks, and the first window: I/O to it waits only briefly
	growWindow = 4             // factor by which the next window may be longer
	paceSample = 15 * time.Millisecond
	paceEvery  = 3 * time.Second // pause between two samples of quiet disks

	// The most that the volumes' users may do on disks that count as idle.
	idleRate = 30 // requests per second
	idlePart = 10 // percent of the time with a request in progress
)

// pace keeps hydration out of the way of other I/O. Only the holder of the turn to
// copy uses it.
type pace struct {
	pool    *Pool
	busy    bool       // others used the disks before the current window
	next    size.Bytes // size of the next window if nobody else uses the disks
	sampled time.Time  // when the disks were last seen quiet
	looked  time.Time  // when the statistics in volumes were read
	volumes map[dm.Device]blockUse
	gentle  atomic.Bool // somebody is about to use the volume, so its windows must be small again
}

// nextLength returns how much to copy next.
func (c *pace) nextLength() size.Sectors {
	length := idleWindow
	if c.writersHeld() {
		c.busy = false
		return length.Sectors()
	}
	if c.busy = c.others(); c.busy || c.next == 0 || c.gentle.Swap(false) {
		c.next = busyWindow
	}
	length = c.next
	if rate := c.pool.config.HydrationRate; rate > 0 { // about the bytes of one second
		length = min(length, max(size.MiB, rate))
	}
	return length.Sectors()
}

// pause records that n bytes were copied in the time took, and then waits as long
// as the configured rate and share of hydration require.
func (c *pace) pause(ctx context.Context, n size.Bytes, took time.Duration) {
	fits := size.Bytes(float64(n) * idleTime.Seconds() / took.Seconds())
	c.next = max(busyWindow, min(fits, growWindow*n, idleWindow)/busyWindow*busyWindow)
	if c.writersHeld() {
		return
	}
	var wait time.Duration
	if rate := c.pool.config.HydrationRate; rate > 0 {
		wait = time.Duration(float64(n)/float64(rate)*float64(time.Second)) - took
	}
	if share := time.Duration(c.pool.config.HydrationShare); c.busy && share < 100 {
		wait = max(wait, took*(100-share)/share)
	}
	if wait <= 0 {
		return
	}
	select {
	case <-time.After(wait):
	case <-ctx.Done():
	}
}

// writersHeld reports whether held writers wait for volumes to be hydrated.
func (c *pace) writersHeld() bool { return c.pool.facts.holding.count() > 0 }

// others reports whether somebody else does I/O on the pool's disks. No window is
// being copied during the call. The statistics of the volumes' own devices show the
// I/O of their users. To detect other I/O on the disks, others watches the disks
// for a moment, but not in every call, because nothing is copied during that
// moment.
func (c *pace) others() bool {
	v, err := c.pool.latest()
	if err != nil {
		return false
	}
	used := c.used(v)
	if !used && !c.busy && time.Since(c.sampled) < paceEvery {
		return false
	}
	before, ok := disksUse(v)
	if used || !ok {
		return used
	}
	time.Sleep(paceSample)
	after, ok := disksUse(v)
	if !ok || after.requests != before.requests || after.flying > 0 {
		return ok
	}
	c.sampled = time.Now()
	return false
}

// used reports whether the volumes were used since the last call.
func (c *pace) used(v *view) bool {
	all, err := c.pool.dm.List()
	if err != nil {
		return false
	}
	ours := map[string]bool{}
	for _, o := range v.Volumes.All() {
		ours[lvm2.DMName(v.VG.Name, o.LV.Name, "")] = true
	}
	now := map[dm.Device]blockUse{}
	var sum blockUse
	for _, d := range all {
		if !ours[d.Name] {
			continue
		}
		u, ok := useOf(d.Device)
		if !ok {
			continue
		}
		now[d.Device] = u
		if before, ok := c.volumes[d.Device]; ok && before.requests <= u.requests && before.busy <= u.busy {
			u.requests, u.busy = u.requests-before.requests, u.busy-before.busy
		}
		sum.add(u)
	}
	since, first := time.Since(c.looked), c.volumes == nil
	c.volumes, c.looked = now, time.Now()
	if first {
		return false
	}
	return sum.flying > 0 || float64(sum.requests) > idleRate*since.Seconds() || sum.busy*100 > since*idlePart
}

// blockUse is the I/O of block devices (Documentation/block/stat.rst of the
// kernel).
type blockUse struct {
	requests uint64        // completed
	flying   uint64        // in progress
	busy     time.Duration // time with a request in progress
}

func (u *blockUse) add(more blockUse) {
	u.requests, u.flying, u.busy = u.requests+more.requests, u.flying+more.flying, u.busy+more.busy
}

// disksUse returns the I/O of the pool's disks that are present; false if a disk
// has no statistics.
func disksUse(v *view) (sum blockUse, ok bool) {
	for _, pv := range v.VG.PVs {
		if pv.Device == "" {
			continue
		}
		u, ok := useOf(diskOf(pv))
		if !ok {
			return sum, false
		}
		sum.add(u)
	}
	return sum, true
}

// useOf returns the I/O of a block device; false if the kernel has no statistics.
func useOf(dev dm.Device) (u blockUse, ok bool) {
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%v/stat", dev))
	if err != nil {
		return u, false
	}
	var n [10]uint64
	fields := strings.Fields(string(text))
	if len(fields) < len(n) {
		return u, false
	}
	for i := range n {
		if n[i], err = strconv.ParseUint(fields[i], 10, 64); err != nil {
			return u, false
		}
	}
	const reads, writes, flying, ticks = 0, 4, 8, 9
	return blockUse{n[reads] + n[writes], n[flying], time.Duration(n[ticks]) * time.Millisecond}, true
}
