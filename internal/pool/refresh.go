package pool

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	refreshPause = 2 * time.Second  // between two readings of the metadata
	lookTimeout  = 30 * time.Second // for one reading and the work that follows
)

// refreshLoop reads the metadata every refreshPause to see changes by LVM2's own
// commands.
func (p *Pool) refreshLoop(ctx context.Context) {
	old, told, followed := rewriter{group: &p.group}, "", p.current.Load()
	for tick := time.NewTicker(refreshPause); ; {
		select {
		case <-tick.C:
			limited, cancel := context.WithTimeout(ctx, lookTimeout)
			err := p.refresh(limited)
			if err != nil && ctx.Err() == nil && err.Error() != told {
				p.log.Error(err, "Failed to read the metadata; it will be retried")
			}
			told = fmt.Sprint(err)
			if p.changed.Swap(false) || len(p.facts.stillInUse()) > 0 {
				v := p.current.Load()
				if err := p.follow(limited, followed); err == nil {
					followed = v
				} else if ctx.Err() == nil {
					p.changed.Store(true)
					p.log.Error(err, "Failed to follow changes that another process made to the metadata")
				}
			}
			old.rewrite(limited)
			cancel()
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}

// follow brings the kernel in line with changes, such as a rollback, that another
// process made in the metadata after the view before.
func (p *Pool) follow(ctx context.Context, before *view) error {
	err := p.do(ctx, &change{what: "follow changes of volume group " + p.vgName, edit: func(t *edit) error {
		return errors.Join(t.WithoutMapped(), t.Protect())
	}, act: func(ctx context.Context, v *view) error {
		for id, o := range v.Volumes.All() {
			if o.Former != "" { // the caretaker removes its devices once no operation uses them
				p.facts.unsettled.put(id, true)
			}
		}
		return p.sweep(ctx, v)
	}})
	if v, failed := p.latest(); failed != nil {
		err = errors.Join(err, failed)
	} else {
		p.settled(before, v)
	}
	return err
}
