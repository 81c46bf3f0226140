package pool

import (
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// intact checks that l and every newer layer up to the live layer still have their
// content. The kernel reports an invalid layer only on its own device, not on the layers
// that read through it, so intact asks every device.
func (p *Pool) intact(v *view, o *volume, l *layer) error {
	if err := p.collected(v, o); err != nil {
		return fmt.Errorf("snapshot %s: %w", l.lv.Name, err)
	}
	for _, x := range o.path(l) {
		if x.lost {
			return fmt.Errorf("snapshot %s: %w: the store of %s overflowed, or a store that it reads through was removed", l.lv.Name, ErrLost, x.lv.Name)
		}
		info, err := p.find(v.snapDevice(x.lv))
		if err != nil {
			return err
		}
		if info == nil {
			continue
		}
		status, err := p.snapshotStatus(info.Name)
		if err != nil {
			return err
		}
		if status.Invalid {
			return fmt.Errorf("snapshot %s: %w: the kernel dropped the store of %s", l.lv.Name, ErrLost, x.lv.Name)
		}
	}
	if !o.forked() {
		return nil
	}
	through, source, err := v.origin(o)
	if err != nil {
		return err
	}
	s, err := p.snapshotStatus(v.forkDevice(o.lv).name)
	if err == nil && s.Invalid {
		return fmt.Errorf("snapshot %s: %w: the kernel could not write to the store of the restored volume %s", l.lv.Name, ErrLost, o.lv.Name)
	}
	return p.intact(v, source, through)
}

func (p *Pool) snapshotStatus(name string) (dm.SnapshotStatus, error) {
	all, err := p.dm.Status(name)
	if err != nil {
		return dm.SnapshotStatus{}, err
	}
	for _, s := range all {
		if st, ok := s.Status.(dm.SnapshotStatus); ok {
			return st, nil
		}
	}
	return dm.SnapshotStatus{}, fmt.Errorf("device %s: no snapshot target in its table", name)
}
