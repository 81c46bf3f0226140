package worker

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/test/audit"
)

const (
	settleLimit = 90 * time.Second // how long the pool's own check may take
	steadyLimit = 20 * time.Second // how long devices may take to settle: layers are folded one after the other
)

// survey waits until nothing is being copied or wiped. It checks that the pool
// has nothing then but what its volumes and snapshots need.
func (s *session) survey() *audit.Audit {
	a, err := audit.Take(context.Background(), vgName, strings.Split(s.options.disks, ","), func() (l audit.Listing, err error) {
		l, err = s.driver.list()
		l.Foreign = s.foreign()
		return l, err
	}, steadyLimit)
	failAudit(err)
	failAudit(a.Extents())
	s.checkWiped(a.VG)
	return a
}

// settled waits until nothing is being copied or wiped, and calls look with the
// metadata, which does not change meanwhile.
func (s *session) settled(look func(*lvm2.VG)) {
	failAudit(audit.Settled(context.Background(), vgName, strings.Split(s.options.disks, ","), func(vg *lvm2.VG) error {
		look(vg)
		return nil
	}))
}

func failAudit(err error) {
	switch {
	case errors.Is(err, audit.ErrHung):
		hung("%v", err)
	case err != nil:
		fail("%v", err)
	}
}
