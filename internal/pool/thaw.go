package pool

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Thaw thaws the file system of a volume that its owner left frozen at dir, and reports
// whether it was frozen. Thaw holds the volume's key, so no cut has the file system
// frozen; up to Linux 6.7 a thaw would end the cut's freeze. Thaw does nothing while the
// volume is suspended to hold its writers, because the thaw would wait for the resume.
//
// Errors: ErrFreeze (the kernel does not answer in time).
func (p *Pool) Thaw(ctx context.Context, lv, dir string) (bool, error) {
	return run(ctx, &p.group, []string{lvKey(lv)}, func(context.Context) (bool, error) {
		v, err := p.latest()
		if err != nil {
			return false, err
		}
		named := v.VG.LV(lv)
		if named == nil {
			return false, nil
		}
		info, err := p.find(v.topDevice(named))
		if err != nil || info == nil || !info.Live || info.Suspended {
			return false, err
		}
		root, err := os.Open(dir)
		if err != nil {
			return false, nil // the file system does not answer, so nobody writes to it
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
				v.VG.Name, lv, ErrFreeze, dir, freezeLimit), ended}
		}
		return answer == nil, nil // otherwise it was not frozen, or the unmount that follows reports the error
	})
}
