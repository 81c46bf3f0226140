package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// A loan is a reader from which another pool of the node copies a volume. It has no
// extents, and only that pool sees it. It keeps its snapshot's layers during the
// copy, even if the snapshot is deleted or the driver restarts.

// loanName returns the name of the loan from which pool to copies its volume name.
func loanName(to, name string) string {
	loan := "copy-to/" + to + "/" + name
	if len(loan) > catalog.MaxCSIName {
		loan = catalog.Hashed(loan, catalog.HashLetters)
	}
	return loan
}

// lend makes the loan from which pool to copies the volume that spec requests,
// after a check that the volume may have that content. lend first deletes a loan of
// the same name that an interrupted attempt left. The caller holds the key of the
// volume's name. Errors: those of CreateVolume.
func (p *Pool) lend(ctx context.Context, spec VolumeSpec, to string) (lvm2.ID, error) {
	from, err := p.offered(spec)
	if err != nil {
		return "", err
	}
	if err := p.recall(ctx, loanName(to, spec.Name)); err != nil {
		return "", err
	}
	loan := VolumeSpec{
		Name: loanName(to, spec.Name), Mode: from.Volume.Mode, FSType: from.Volume.FS,
		Source: spec.Source, ReadOnly: true, LentTo: to + "/" + spec.Name,
	}
	if spec.Source.Kind == FromVolume {
		if err := p.syncBefore(ctx, spec.Source.LV); err != nil {
			return "", err
		}
		p.makeWay(ctx, spec.Source.LV)
	}
	keys, err := p.sourceKeys(loan)
	if err != nil {
		return "", err
	}
	lv, err := run(ctx, &p.group, append([]string{nameKey(loan.Name)}, keys...), func(ctx context.Context) (string, error) {
		return p.createFrom(ctx, loan)
	})
	var debt *PendingError
	if errors.As(err, &debt) && debt.wiping {
		return "", &PendingError{What: debt.What} // without wiping: the caller would wait for extents of its own pool
	}
	var yet *noRoomYet
	if errors.As(err, &yet) {
		return "", yet.error
	}
	if err != nil {
		return "", err
	}
	v, err := p.latest()
	if err != nil {
		return "", err
	}
	if o := v.VolumeByLV(lv); o != nil {
		return o.LV.ID, nil
	}
	return "", fmt.Errorf("volume %s/%s: %w: removed by somebody else", p.vgName, lv, ErrNotFound)
}

// offered returns the initial content of the volume that spec requests. spec's
// source is in p. Errors: ErrNotFound, ErrLost, ErrPrecondition, ErrInvalid.
func (p *Pool) offered(spec VolumeSpec) (catalog.Original, error) {
	v, err := p.latest()
	if err != nil {
		return catalog.Original{}, err
	}
	return v.ContentOf(spec)
}

// lent returns the content of a loan; ErrNotFound if there is no such loan.
func (p *Pool) lent(id lvm2.ID) (o *catalog.Volume, from catalog.Original, err error) {
	v, err := p.latest()
	if err != nil {
		return nil, from, err
	}
	if o = v.Volumes.Get(id); o == nil || o.LentTo == "" || o.Deleted {
		return nil, from, fmt.Errorf("the loan %s of volume group %s: %w", id, p.vgName, ErrNotFound)
	}
	l, source, err := v.ReadFrom(o)
	if err == nil {
		err = p.intact(v, source, l)
	}
	if err != nil {
		return nil, from, err
	}
	return o, catalog.ContentAt(source, l), nil
}

// lentFor returns the content of a loan for the volume that spec requests. Errors:
// those of offered.
func (p *Pool) lentFor(spec VolumeSpec, id lvm2.ID) (catalog.Original, error) {
	_, from, err := p.lent(id)
	if err != nil {
		return from, err
	}
	v, err := p.latest()
	if err != nil {
		return from, err
	}
	from.Formatted = from.Formatted || spec.Mode == Block || from.Volume.Mode == Block
	return from, v.ModeChange(spec, from)
}

// openLoan creates the device of a loan, and opens it for direct reads. Errors:
// ErrNotFound, ErrLost.
func (p *Pool) openLoan(ctx context.Context, id lvm2.ID) (*os.File, error) {
	o, _, err := p.lent(id)
	if err != nil {
		return nil, err
	}
	if err := p.flattenBelow(ctx, o.LV.Name); err != nil {
		return nil, err
	}
	return run(ctx, &p.group, []string{lvKey(o.LV.Name)}, func(ctx context.Context) (f *os.File, err error) {
		return f, p.do(ctx, &change{what: "open the content of loan " + o.Name, act: func(ctx context.Context, v *view) error {
			o := v.Volumes.Get(id)
			if o == nil {
				return fmt.Errorf("the loan %s of volume group %s: %w", id, p.vgName, ErrNotFound)
			}
			if err := p.up(ctx, v, o); err != nil {
				return err
			}
			f, err = os.OpenFile(p.dm.Node(v.topDevice(o.LV).name), os.O_RDONLY|unix.O_DIRECT, 0)
			return err
		}})
	})
}

// recall deletes the loan of that name; nil if there is none. It returns ErrInUse
// while the loan is being read.
func (p *Pool) recall(ctx context.Context, name string) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	o := v.Named.Get(name)
	if o == nil || o.LentTo == "" {
		return nil
	}
	return p.DeleteVolume(ctx, o.LV.Name)
}

// loans deletes unused loans until ctx ends.
func (s *Set) loans(ctx context.Context) {
	look := time.NewTimer(loanFirst)
	defer look.Stop()
	for {
		select {
		case <-look.C:
			look.Reset(loanLook)
		case <-ctx.Done():
			return
		}
		if err := guard(klog.FromContext(ctx), func() error { return s.recallLoans(ctx) }); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Failed to delete loans that no copy needs; it will be retried")
		}
	}
}

// recallLoans deletes the loans of a set's pools that no copy uses. An
// interruption, or the deletion of an incomplete volume, leaves such loans.
func (s *Set) recallLoans(ctx context.Context) error {
	var errs []error
	for _, m := range s.members {
		p, err := m.get()
		if err != nil {
			continue
		}
		v, err := p.latest()
		if err != nil {
			continue
		}
		for _, o := range v.Volumes.All() {
			if o.LentTo == "" || o.Deleted {
				continue
			}
			to, name, _ := strings.Cut(o.LentTo, "/")
			switch borrower, err := s.Pool(to); {
			case errors.Is(err, ErrNotFound): // no pool can continue the copy
				errs = append(errs, p.recall(ctx, o.Name))
			case err == nil:
				errs = append(errs, borrower.giveBack(ctx, name, p, o))
			}
		}
	}
	return errors.Join(errs...)
}

// giveBack deletes a loan of pool from, unless the volume of that name is being
// copied from it.
func (p *Pool) giveBack(ctx context.Context, name string, from *Pool, loan *catalog.Volume) error {
	release, err := p.keys.lock(ctx, nameKey(name))
	if err != nil {
		return err
	}
	defer release()
	v, err := p.latest()
	if err != nil {
		return err
	}
	if o := v.Named.Get(name); o != nil && o.Copying != nil && o.Copying.Loan == loan.LV.ID {
		return nil
	}
	return from.recall(ctx, loan.Name)
}
