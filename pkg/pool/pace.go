package pool

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	idleWindow = 256 * size.MiB // of a fork, while nobody else uses the disks
	busyWindow = 16 * size.MiB  // else: what is copied is not held up for long
	paceSample = 15 * time.Millisecond
)

// pace keeps hydration out of the way of other I/O. It is asked by whoever has
// the turn to copy.
type pace struct {
	pool *Pool
	busy bool // others used the disks before the window that is copied now
}

// window returns how much is to be copied next.
func (c *pace) window() size.Sectors {
	length := idleWindow
	if c.urgent() {
		c.busy = false
		return length.Sectors()
	}
	c.busy = c.others()
	if c.busy {
		length = busyWindow
	}
	if rate := c.pool.config.HydrationRate; rate > 0 { // about a second's worth
		length = min(length, max(size.MiB, rate))
	}
	return length.Sectors()
}

// pause waits as long as the rate and the share of hydration ask for after n
// bytes were copied in took.
func (c *pace) pause(ctx context.Context, n size.Bytes, took time.Duration) {
	if c.urgent() {
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

// urgent tells whether somebody's writes wait for volumes to be hydrated.
func (c *pace) urgent() (is bool) {
	c.pool.holding.Range(func(any, any) bool {
		is = true
		return false
	})
	return is
}

// others tells whether somebody does I/O on the pool's disks. No window is
// being copied.
func (c *pace) others() bool {
	before, ok := c.requests()
	if !ok {
		return false
	}
	time.Sleep(paceSample)
	after, ok := c.requests()
	return ok && after != before
}

// requests counts what the pool's disks have completed and what they are at
// (Documentation/block/stat.rst of the kernel).
func (c *pace) requests() (sum uint64, ok bool) {
	v, err := c.pool.latest()
	if err != nil {
		return 0, false
	}
	for _, pv := range v.vg.PVs {
		dev, err := dm.DeviceOf(pv.Device)
		if err != nil {
			return 0, false
		}
		text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%v/stat", dev))
		if err != nil {
			return 0, false
		}
		fields := strings.Fields(string(text))
		const reads, writes, flying = 0, 4, 8
		for _, i := range []int{reads, writes, flying} {
			if i >= len(fields) {
				return 0, false
			}
			n, err := strconv.ParseUint(fields[i], 10, 64)
			if err != nil {
				return 0, false
			}
			sum += n
		}
	}
	return sum, true
}
