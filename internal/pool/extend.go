package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

const (
	extendLook = time.Minute // pause between two looks at devices that stay the same
	// blankFor is how long a device must have been blank before it is added to a
	// group in use. It may be a path to a map that is not made yet, or somebody may
	// be wiping it for another purpose.
	blankFor = 5 * time.Second
)

var errBlankNow = errors.New("it became blank only a moment ago; it will be added if it stays blank")

// extendAtOpening adds blank devices before the pool is used.
func (p *Pool) extendAtOpening(ctx context.Context, store *lvm2.Store) {
	vg, err := p.readGroup(ctx, store)
	if err != nil {
		p.log.Error(err, "Failed to extend the volume group")
		return
	}
	if p.config.File != "" {
		p.enterFile(ctx, vg)
	}
	p.extendGroup(vg, func(device string) error { return store.Extend(ctx, []string{device}) })
}

// extendGroup adds the configured devices that are blank. A device with content is
// left out, and does not keep the pool from being served.
func (p *Pool) extendGroup(vg *lvm2.VG, add func(device string) error) {
	devices, left, err := p.config.choose(vg)
	if err != nil {
		p.log.Error(err, "Failed to extend the volume group")
		return
	}
	for _, d := range devices {
		if err := add(d); err != nil {
			left = append(left, LeftOut{Device: d, Why: err.Error()})
			continue
		}
		p.log.Info("Added a device to the volume group", "volumeGroup", p.vgName, "device", d)
	}
	p.outside.leaveOut(p.log, left)
}

// extender adds devices to the group that appear, or become fit, while the pool is
// open.
type extender struct {
	pool *Pool
	seen string               // the machine's devices at the last look
	next time.Time            // when to look again if the devices stay the same
	fit  map[string]time.Time // since when each device is known to be blank
}

// extendLoop looks for such devices after block devices have come or gone, and also
// periodically, because the kernel does not announce writes to a device.
func (p *Pool) extendLoop(ctx context.Context) {
	if !p.config.Create || p.config.File != "" {
		return
	}
	x := extender{pool: p}
	x.due() // records the devices with which the pool was opened
	for tick := time.NewTicker(refreshPause); ; {
		select {
		case <-tick.C:
			if x.due() {
				x.look(ctx)
			}
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}

// due reports whether to look again. If so, it assumes that the caller looks.
func (x *extender) due() bool {
	v, err := x.pool.latest()
	if err != nil {
		return false
	}
	now := x.pool.config.seen(x.pool.lvDevices()) + fmt.Sprint(v.Writable())
	if now == x.seen && time.Now().Before(x.next) {
		return false
	}
	every := extendLook
	if x.pool.config.lookEvery != 0 {
		every = x.pool.config.lookEvery
	}
	x.seen, x.next = now, time.Now().Add(every)
	return true
}

// look extends the group. It reads the devices itself, because a device that does
// not answer would block the committer.
func (x *extender) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if x.pool.refresh(ctx) != nil { // refreshLoop logs the error
		return
	}
	v, former := x.pool.current.Load(), x.fit
	x.fit = map[string]time.Time{}
	x.pool.extendGroup(v.VG, func(device string) error {
		since, known := former[device]
		if !known {
			since = time.Now()
		}
		x.fit[device] = since
		if err := v.Writable(); err != nil {
			return fmt.Errorf("it will be added once the volume group can be changed: %w", err)
		}
		if time.Since(since) < blankFor {
			x.next = time.Now().Add(blankFor)
			return errBlankNow
		}
		return x.pool.do(ctx, &change{what: "add device " + device, alone: func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, lockLimit) // all changes wait for the extension
			defer cancel()
			return x.pool.vgStore.Extend(ctx, []string{device})
		}})
	})
}
