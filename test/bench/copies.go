package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// copyOf copies a device to a new volume by the given function, and returns how
// long the copy took, in milliseconds.
func (b *bench) copyOf(from string, length size.Bytes, by func(from, to string) error) (took float64, err error) {
	const volume = "copied"
	if err := b.ours.Create(volume, length, true); err != nil {
		return 0, err
	}
	to, err := b.ours.Attach(volume)
	if err != nil {
		return 0, err
	}
	if err := b.ours.Disk().Quiet(); err != nil {
		return 0, err
	}
	took, err = timed(func() error { return by(from, to) })
	return took, errors.Join(err, b.ours.Detach(volume), b.ours.Delete(volume), b.ours.Wiped())
}

// dd copies a device to another one, bypasses the page cache, and flushes.
func dd(from, to string) error {
	out, err := exec.Command("dd", "if="+from, "of="+to, "bs=4M", "iflag=direct", "oflag=direct", "conv=fsync", "status=none").CombinedOutput()
	if err != nil {
		return fmt.Errorf("dd: %w\n%s", err, out)
	}
	return nil
}

// mirror copies a device to another one by one kernel mirror over all of it,
// with regions of hydration's size, and flushes.
func mirror(from, to string) (err error) {
	const name, region, limit = "bench-mirror", 4096, 10 * time.Minute
	var legs []dm.Area
	for _, path := range []string{from, to} {
		d, err := dm.DeviceOf(path)
		if err != nil {
			return err
		}
		legs = append(legs, dm.Area{Device: d})
	}
	f, err := os.OpenFile(to, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	length, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	c, err := dm.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Create(name, ""); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Remove(name, 0)) }()
	table := dm.Table{{Length: size.Bytes(length).Sectors(), Target: dm.Mirror{Region: region, Legs: legs, HandleErrors: true}}}
	if err := errors.Join(c.Load(name, table, false), c.Resume(name, 0)); err != nil {
		return err
	}
	if err := synced(c, name, limit); err != nil {
		return err
	}
	return unix.Fdatasync(int(f.Fd()))
}

// synced waits until a mirror is in sync.
func synced(c *dm.Client, name string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	w, err := c.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		if err := w.Arm(); err != nil {
			return err
		}
		status, err := c.Status(name)
		if err != nil {
			return err
		}
		if m, is := status[0].Status.(dm.MirrorStatus); !is || m.Synced() {
			return nil
		}
		if err := w.Wait(ctx); err != nil {
			return fmt.Errorf("%s: %v: %w", name, status[0].Status, err)
		}
	}
}
