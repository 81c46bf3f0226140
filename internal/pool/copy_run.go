package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/internal/directio"
	"github.com/csi-dmsnap/csi-dmsnap/internal/point"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	copyPiece   = size.MiB        // bytes of one transfer
	copyWorkers = 4               // concurrent transfers
	copyCommit  = 2 * time.Second // pause between two records of the progress
)

// open opens the source and the volume. The incomplete volume has no other device.
func (c *copying) open(ctx context.Context, o *catalog.Volume) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close(context.WithoutCancel(ctx)))
		}
	}()
	if c.from, err = c.source.openLoan(ctx, c.state.Loan); err != nil {
		return err
	}
	loan, from, err := c.source.lent(c.state.Loan)
	if err != nil {
		return err
	}
	theirs, err := c.source.latest()
	if err != nil {
		return err
	}
	c.length = min(from.Length, theirs.BytesOf(loan.LV))
	if o.Mode == Block {
		for _, u := range from.Unknown {
			c.zeroes = append(c.zeroes, byteRange{size.Bytes(u.Start) * theirs.ExtentSize(), size.Bytes(u.Start+u.Count) * theirs.ExtentSize()})
		}
	}
	return c.pool.do(ctx, &change{what: "open volume " + c.lv + " to copy it", act: func(ctx context.Context, v *view) error {
		now, err := c.current(v)
		if err != nil {
			return err
		}
		c.end = min(c.length.RoundUp(v.ExtentSize()), v.BytesOf(now.LV))
		table, err := v.linearTable(now.LV)
		if err != nil {
			return err
		}
		// Avoid the volume's own name: hydration counts I/O to that device as a
		// user's.
		c.device = v.realDevice(now.LV)
		if c.to, err = c.pool.openDevice(ctx, v, c.device, table); err != nil {
			return err
		}
		flags, err := unix.FcntlInt(c.to.Fd(), unix.F_GETFL, 0)
		if err == nil {
			_, err = unix.FcntlInt(c.to.Fd(), unix.F_SETFL, flags|unix.O_DIRECT)
		}
		return os.NewSyscallError("fcntl", err)
	}})
}

// current returns the volume in v, if it is still copied from the same loan.
func (c *copying) current(v *view) (*catalog.Volume, error) {
	o := v.VolumeByLV(c.lv)
	if o == nil || o.Deleted || o.Copying == nil || o.Copying.Loan != c.state.Loan {
		return nil, fmt.Errorf("volume %s/%s: %w: removed by somebody else", v.VG.Name, c.lv, ErrNotFound)
	}
	if why := o.Theirs(); why != "" {
		return nil, fmt.Errorf("volume %s/%s: %w: %s", v.VG.Name, c.lv, ErrPrecondition, why)
	}
	return o, nil
}

// close closes both, and removes the device that was written.
func (c *copying) close(ctx context.Context) error {
	var errs []error
	if c.from != nil {
		errs = append(errs, c.from.Close())
	}
	if c.to != nil {
		errs = append(errs, c.to.Close(), c.pool.takeDown(ctx, c.device))
	}
	return errors.Join(errs...)
}

// run copies the rest of the content. Like hydration, it gives way to other I/O on
// the disks of both pools.
func (c *copying) run(ctx context.Context) error {
	pace, theirs := &pace{pool: c.pool}, &pace{pool: c.source}
	recorded := time.Now()
	at := c.state.Done.Bytes()
	for at < c.length {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		n := pace.nextLength().Bytes()
		if !pace.busy && theirs.others() {
			pace.busy, n = true, min(n, busyWindow)
		}
		n = min(n, c.length-at)
		began := time.Now()
		if err := c.copyPart(ctx, byteRange{at, at + n}); err != nil {
			return err
		}
		at += n
		c.job.done.Store(uint64(at))
		if time.Since(recorded) > copyCommit && at < c.length {
			if err := c.record(ctx, at); err != nil {
				return err
			}
			recorded = time.Now()
		}
		pace.pause(ctx, n, time.Since(began))
	}
	if err := zeroDevice(ctx, c.to, c.length, c.end-c.length, func(size.Bytes) {}); err != nil {
		return err
	}
	return c.flush()
}

// record commits that the volume is copied up to at.
func (c *copying) record(ctx context.Context, at size.Bytes) error {
	if err := c.flush(); err != nil {
		return err
	}
	return c.pool.do(ctx, &change{what: "record how much of volume " + c.lv + " is copied", edit: func(t *edit) error {
		now, err := c.current(t.view())
		if err != nil {
			return err
		}
		return t.RecordCopied(now, catalog.CopyState{Loan: c.state.Loan, Done: at.Sectors()})
	}})
}

func (c *copying) flush() error {
	return os.NewSyscallError("fdatasync", unix.Fdatasync(int(c.to.Fd())))
}

// copyPart copies a part.
func (c *copying) copyPart(ctx context.Context, part byteRange) error {
	for at := part.from; at < part.to; {
		next := byteRange{at, part.to}
		zero := false
		for _, z := range c.zeroes {
			if z.to <= at {
				continue
			}
			if zero = z.from <= at; zero {
				next.to = min(next.to, z.to)
			} else {
				next.to = min(next.to, z.from)
			}
			break
		}
		var err error
		if zero {
			err = zeroDevice(ctx, c.to, next.from, next.to-next.from, func(size.Bytes) {})
		} else {
			err = c.transfer(ctx, next)
		}
		if err != nil {
			return err
		}
		at = next.to
	}
	return nil
}

// transfer copies a part, several pieces at a time.
func (c *copying) transfer(ctx context.Context, part byteRange) error {
	buf, free, err := directio.Buffer(copyWorkers * copyPiece)
	if err != nil {
		return err
	}
	defer free()
	work := make(chan byteRange)
	var failed [copyWorkers]error
	var workers sync.WaitGroup
	broken := make(chan struct{})
	var once sync.Once
	for i := range copyWorkers {
		own := buf[i*int(copyPiece):][:copyPiece]
		workers.Go(func() {
			for piece := range work {
				if failed[i] = c.piece(own, piece); failed[i] != nil {
					once.Do(func() { close(broken) })
					return
				}
			}
		})
	}
feed:
	for at := part.from; at < part.to; at += copyPiece {
		select {
		case work <- byteRange{at, min(at+copyPiece, part.to)}:
		case <-broken:
			break feed
		case <-ctx.Done():
			break feed
		}
	}
	close(work)
	workers.Wait()
	return errors.Join(append(failed[:], context.Cause(ctx))...)
}

// piece copies a part that fits into buf.
func (c *copying) piece(buf []byte, part byteRange) error {
	b := buf[:part.to-part.from]
	if _, err := c.from.ReadAt(b, int64(part.from)); err != nil {
		return fmt.Errorf("reading %v at byte %d of %s: %w", part.to-part.from, part.from, c.from.Name(), err)
	}
	if point.On {
		point.Before("copy to", c.to.Name())
	}
	if _, err := c.to.WriteAt(b, int64(part.from)); err != nil {
		return fmt.Errorf("writing %v at byte %d of %s: %w", part.to-part.from, part.from, c.to.Name(), err)
	}
	return nil
}
