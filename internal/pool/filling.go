package pool

import (
	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
)

// snapshotDevice returns the device whose status shows how full the store is.
func (p *Pool) snapshotDevice(v *view, s *catalog.Store) device {
	if s.Fork {
		return v.forkDevice(s.Of.LV)
	}
	return v.snapDevice(s.LV)
}

// kept reports whether the writers that fill s must wait rather than lose s.
func (p *Pool) kept(v *view, s *catalog.Store) bool { return s.Fork || p.keep(v, s.Of) }
