package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/directio"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/contender"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/disk"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/figures"
)

const (
	// The baseline of restores: a copy of the whole volume while the claim
	// waits.
	fullCopy   = "full copy"
	mostCopied = 4 * size.GiB // longer ones are extrapolated
	restoreHas = size.GiB     // length of the origin's file, whatever the origin's size
	dataFile   = "data"
)

func (b *bench) restoreSizes() []size.Bytes {
	all := []size.Bytes{size.GiB, 4 * size.GiB}
	if b.large {
		all = append(all, 16*size.GiB, 64*size.GiB)
	}
	return all
}

func firstByteName(kind string, length size.Bytes) string {
	return fmt.Sprintf("%s_first_byte/size=%v", kind, length)
}

// createName is the figure of the first part of that time, until CreateVolume
// returns.
func createName(kind string, length size.Bytes) string {
	return fmt.Sprintf("%s_create/size=%v", kind, length)
}

func restoreNames(n size.Bytes) (all []string) {
	for _, kind := range []string{"restore", "clone"} {
		all = append(all, createName(kind, n), firstByteName(kind, n))
	}
	return all
}

func restoreFigures(b *bench) (all []string) {
	for _, n := range b.restoreSizes() {
		all = append(all, restoreNames(n)...)
	}
	return all
}

// restores measures how long a restore or clone takes from the request until
// the volume is made, and until its first byte can be read.
func (b *bench) restores() error {
	var perByte float64 // milliseconds of the longest full copy
	for _, n := range b.restoreSizes() {
		if !b.anyWanted(restoreNames(n)...) {
			continue
		}
		if err := b.restoresOf(n, &perByte); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) restoresOf(n size.Bytes, perByte *float64) error {
	took, full := samples{}, []float64(nil)
	note := fmt.Sprintf("of an ext4 with a file of %v (768MiB if the volume has 1GiB)", restoreHas)
	if n <= mostCopied {
		var err error
		if took, full, err = b.restoresAndCopies(n); err != nil {
			return err
		}
		*perByte = figures.Median(full) / float64(n)
	} else {
		if err := b.largeRestores(n, took); err != nil {
			return err
		}
		note += "; each in a new pool"
		if *perByte > 0 {
			full = []float64{*perByte * float64(n)}
			note += fmt.Sprintf(", and the full copy is extrapolated from %v", mostCopied)
		}
	}
	for _, kind := range []string{"restore", "clone"} {
		for _, f := range []struct{ name, about string }{
			{createName(kind, n), "; until CreateVolume returns"},
			{firstByteName(kind, n), "; from the request to the first bytes of the file in the mounted copy, which is being hydrated"},
		} {
			if b.wanted(f.name) {
				b.figures.Add(figures.Series{Name: f.name, Unit: "ms", Tail: true, Ours: took[f.name], Theirs: full, Against: fullCopy, Note: note + f.about})
			}
		}
	}
	return nil
}

const (
	restoreOrigin   = "restored-origin"
	restoreSnapshot = "restored-snap"
	restored        = "restored"
)

// restoresAndCopies measures restores, clones and full copies.
func (b *bench) restoresAndCopies(n size.Bytes) (took samples, full []float64, err error) {
	path, err := filled(b.ours, restoreOrigin, n, min(restoreHas, n/4*3))
	if err != nil {
		return nil, nil, err
	}
	device, err := mountedDevice(filepath.Dir(path))
	if err != nil {
		return nil, nil, err
	}
	repeat := 15
	if b.quick {
		repeat = 4
	}
	took = samples{}
	for range repeat {
		if err := b.ours.Snapshot(restoreOrigin, restoreSnapshot, 0); err != nil {
			return nil, nil, err
		}
		for _, kind := range []string{"restore", "clone"} {
			if err := firstByte(b.ours, kind, path, n, took); err != nil {
				return nil, nil, err
			}
			// Deleted before hydration has copied all of it.
			if err := errors.Join(b.ours.Unmount(restored), b.ours.Delete(restored), b.ours.Wiped()); err != nil {
				return nil, nil, err
			}
		}
		if err := errors.Join(b.ours.DeleteSnapshot(restoreOrigin, restoreSnapshot), b.ours.Wiped()); err != nil {
			return nil, nil, err
		}
	}
	for range max(1, b.hydrationRepeats()/2) {
		t, err := b.copyOf(device, n, dd)
		if err != nil {
			return nil, nil, err
		}
		full = append(full, t)
	}
	return took, full, errors.Join(b.ours.Unmount(restoreOrigin), b.ours.Delete(restoreOrigin), b.ours.Wiped())
}

// largeRestores measures restores and clones of volumes for which the host's
// disk need not have room. Each is made in a pool of its own that is not wiped
// at the end: otherwise the file of the disk would have to hold all the zeroes.
func (b *bench) largeRestores(n size.Bytes, took samples) error {
	const repeat = 5
	for range repeat {
		for _, kind := range []string{"restore", "clone"} {
			if err := b.largeRestore(n, kind, took); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) largeRestore(n size.Bytes, kind string, took samples) error {
	dir, err := os.MkdirTemp(b.dir, "large-")
	if err != nil {
		return err
	}
	pools, err := contender.StartDriver(b.driver, dir, contender.Pool{Name: "large", Disk: b.spare})
	if err != nil {
		return err
	}
	d := pools[0]
	err = func() error {
		path, err := filled(d, restoreOrigin, n, restoreHas)
		if err != nil {
			return err
		}
		if err := warmUp(d); err != nil {
			return err
		}
		if err := d.Snapshot(restoreOrigin, restoreSnapshot, 0); err != nil {
			return err
		}
		if err := d.Disk().Quiet(); err != nil {
			return err
		}
		if err := firstByte(d, kind, path, n, took); err != nil {
			return err
		}
		return errors.Join(d.Unmount(restored), d.Unmount(restoreOrigin))
	}()
	return errors.Join(err, d.Destroy())
}

// warmUp makes one restore and one clone by a driver that was just started.
func warmUp(d *contender.Driver) error {
	const volume, snapshot, copied, cloned = "warm", "warm-snap", "warm-restored", "warm-cloned"
	return errors.Join(
		d.Create(volume, 64*size.MiB, true), d.Snapshot(volume, snapshot, 0),
		d.Restore(copied, snapshot, 64*size.MiB, true), d.Hydrated(copied),
		d.Clone(cloned, volume, 64*size.MiB), d.Hydrated(cloned))
}

// firstByte measures a restore of the origin's snapshot, or a clone of the
// origin.
func firstByte(d *contender.Driver, kind, path string, n size.Bytes, took samples) error {
	want, err := firstBlock(path)
	if err != nil {
		return err
	}
	var created float64
	t, err := timed(func() (err error) {
		create := func() error { return d.Restore(restored, restoreSnapshot, n, false) }
		if kind == "clone" {
			create = func() error { return d.Clone(restored, restoreOrigin, n) }
		}
		if created, err = timed(create); err != nil {
			return err
		}
		dir, err := d.Mount(restored)
		if err != nil {
			return err
		}
		got, err := firstBlock(filepath.Join(dir, dataFile))
		if err == nil && !bytes.Equal(got, want) {
			err = errors.New("the copy's file differs from the source's")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%s of %v: %w", kind, n, err)
	}
	took.take(createName(kind, n), created)
	took.take(firstByteName(kind, n), t)
	return nil
}

// filled makes an ext4 with a file and returns the path of the file.
func filled(d *contender.Driver, volume string, length, has size.Bytes) (string, error) {
	if err := d.Create(volume, length, false); err != nil {
		return "", err
	}
	dir, err := d.Mount(volume)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, dataFile)
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	return path, errors.Join(f.Close(), disk.Fill(path, 0, has))
}

// firstBlock reads the first 4 KiB of a file and bypasses the page cache.
func firstBlock(path string) (out []byte, err error) {
	const block = 4096
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, free, err := directio.Buffer(block)
	if err != nil {
		return nil, err
	}
	defer free()
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, err
	}
	return bytes.Clone(b), nil
}
