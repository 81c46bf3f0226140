package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

const (
	extendLook = time.Minute // between two looks at devices that stay the same
	// How long a device must have been blank before it is added to a group in use: it may
	// be a path to a map that is not made yet, or somebody wipes it for something else.
	blankFor = 5 * time.Second
)

var errBlankNow = errors.New("it became blank only a moment ago; it will be added if it stays blank")

// extendAtOpening adds what is blank before the pool is used.
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

// extendGroup adds those of the configured devices that are blank. One that
// holds something is left alone: it must not keep the pool from being served.
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

// extender adds devices to the group that become fit, or come, while the pool is open.
type extender struct {
	pool *Pool
	seen string               // what there was at the last look
	next time.Time            // when to look again if that stays so
	fit  map[string]time.Time // since when devices are known to be blank
}

// extendLoop looks for such devices when block devices have come or gone, and from
// time to time: of what is written to one nobody tells.
func (p *Pool) extendLoop(ctx context.Context) {
	if !p.config.Create || p.config.File != "" {
		return
	}
	x := extender{pool: p}
	x.due() // the pool was opened with what there is
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

// due reports whether to look again, and counts on that this is done.
func (x *extender) due() bool {
	v, err := x.pool.latest()
	if err != nil {
		return false
	}
	now := x.pool.config.seen(x.pool.lvDevices()) + fmt.Sprint(v.writable())
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

// look extends the group. The devices are read here, and not by the committer, which one
// that does not answer would hold up.
func (x *extender) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if x.pool.refresh(ctx) != nil { // refreshLoop tells
		return
	}
	v, former := x.pool.current.Load(), x.fit
	x.fit = map[string]time.Time{}
	x.pool.extendGroup(v.vg, func(device string) error {
		since, known := former[device]
		if !known {
			since = time.Now()
		}
		x.fit[device] = since
		if err := v.writable(); err != nil {
			return fmt.Errorf("it will be added once the volume group can be changed: %w", err)
		}
		if time.Since(since) < blankFor {
			x.next = time.Now().Add(blankFor)
			return errBlankNow
		}
		return x.pool.do(ctx, &change{what: "add device " + device, alone: func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, lockLimit) // all changes wait meanwhile
			defer cancel()
			return x.pool.store.Extend(ctx, []string{device})
		}})
	})
}
