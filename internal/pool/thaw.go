package pool

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Thaw lets the file system of a volume go on that its owner has left frozen at dir,
// and reports whether it was. Nobody has the volume's key meanwhile, so no cut of
// ours has it frozen: up to Linux 6.7 the kernel would end that freeze. Whoever holds
// a volume's writers suspends it without a freeze, and thawing would wait for that.
//
// Errors: ErrFreeze (the kernel does not answer in time).
func (p *Pool) Thaw(ctx context.Context, lv, dir string) (bool, error) {
	return run(ctx, &p.group, []string{lvKey(lv)}, func(context.Context) (bool, error) {
		v, err := p.latest()
		if err != nil {
			return false, err
		}
		named := v.vg.LV(lv)
		if named == nil {
			return false, nil
		}
		info, err := p.find(v.topDevice(named))
		if err != nil || info == nil || !info.Live || info.Suspended {
			return false, err
		}
		root, err := os.Open(dir)
		if err != nil {
			return false, nil // it does not answer, so nothing is written to it
		}
		var answer error
		ended := p.apart(func() {
			defer root.Close()
			answer = unix.IoctlSetInt(int(root.Fd()), fsThaw, 0)
		})
		select {
		case <-ended:
		case <-time.After(freezeLimit):
			return false, &stuckFreeze{fmt.Errorf("volume %s/%s: %w: thawing its file system at %s takes longer than %v",
				v.vg.Name, lv, ErrFreeze, dir, freezeLimit), ended}
		}
		return answer == nil, nil // else it was not frozen, or the unmount tells why it cannot go on
	})
}
