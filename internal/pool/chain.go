package pool

import (
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// intact checks that l and every layer that it reads through, up to the live layer, still
// have their content. The kernel reports an invalid layer only on its own device, not on the layers
// that read through it, so intact asks every device.
func (p *Pool) intact(v *view, o *catalog.Volume, l *catalog.Layer) error {
	if err := p.collected(v, o); err != nil {
		return fmt.Errorf("snapshot %s: %w", l.LV.Name, err)
	}
	for _, x := range o.Path(l) {
		if x.Lost {
			return fmt.Errorf("snapshot %s: %w: the store of %s overflowed or was lost by a disk, or a store that it reads through was removed", l.LV.Name, ErrLost, x.LV.Name)
		}
		info, err := p.find(v.snapDevice(x.LV))
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
			return fmt.Errorf("snapshot %s: %w: the kernel dropped the store of %s", l.LV.Name, ErrLost, x.LV.Name)
		}
	}
	if !o.Forked() {
		return nil
	}
	through, source, err := v.Origin(o)
	if err != nil {
		return err
	}
	s, err := p.snapshotStatus(v.forkDevice(o.LV).name)
	if err == nil && s.Invalid {
		return fmt.Errorf("snapshot %s: %w: the kernel could not write to the store of the restored volume %s", l.LV.Name, ErrLost, o.LV.Name)
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
