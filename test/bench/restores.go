package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/disk"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/figures"
)

const (
	// What restores are compared with: a copy of the whole volume while the
	// claim waits.
	fullCopy   = "full copy"
	mostCopied = 4 * size.GiB // longer ones are extrapolated
	restoreHas = size.GiB     // the origin's file, whatever its size
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

func restoreFigures(b *bench) (all []string) {
	for _, n := range b.restoreSizes() {
		all = append(all, firstByteName("restore", n), firstByteName("clone", n))
	}
	return all
}

// restores measures how long it takes from the request for a restored or cloned
// volume to its first byte.
func (b *bench) restores() error {
	var perByte float64 // milliseconds of the longest full copy
	for _, n := range b.restoreSizes() {
		if !b.anyWanted(firstByteName("restore", n), firstByteName("clone", n)) {
			continue
		}
		if err := b.restoresOf(n, &perByte); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) restoresOf(n size.Bytes, perByte *float64) error {
	const volume = "restored-origin"
	path, err := b.filled(volume, n, min(restoreHas, n/4*3))
	if err != nil {
		return err
	}
	device, err := mountedDevice(filepath.Dir(path))
	if err != nil {
		return err
	}
	took, err := b.firstBytes(volume, path, n)
	if err != nil {
		return err
	}
	full, note := []float64(nil), fmt.Sprintf("of an ext4 with a file of %v (of 1GiB: 768MiB), from the request to the first bytes of the file in the mounted copy", restoreHas)
	switch {
	case n <= mostCopied:
		for range max(1, b.hydrationRepeats()/2) {
			t, err := b.copyOf(device, n)
			if err != nil {
				return err
			}
			full = append(full, t)
		}
		*perByte = figures.Median(full) / float64(n)
	case *perByte > 0:
		full = []float64{*perByte * float64(n)}
		note += fmt.Sprintf("; the full copy is extrapolated from %v", mostCopied)
	}
	for _, kind := range []string{"restore", "clone"} {
		if name := firstByteName(kind, n); b.wanted(name) {
			b.figures.Add(figures.Series{Name: name, Unit: "ms", Tail: true, Ours: took[kind], Theirs: full, Against: fullCopy, Note: note})
		}
	}
	return errors.Join(b.ours.Unmount(volume), b.ours.Delete(volume), b.ours.Wiped())
}

// firstBytes takes the times of restores of a snapshot of the volume, and of
// clones of it.
func (b *bench) firstBytes(volume, path string, n size.Bytes) (took samples, err error) {
	const made, snapshot = "restored", "restored-snap"
	want, err := firstBlock(path)
	if err != nil {
		return nil, err
	}
	repeat := 15
	switch {
	case n > mostCopied:
		repeat = 3
	case b.quick:
		repeat = 4
	}
	took = samples{}
	for range repeat {
		if err := b.ours.Snapshot(volume, snapshot, 0); err != nil {
			return nil, err
		}
		for _, kind := range []string{"restore", "clone"} {
			t, err := timed(func() error {
				create := func() error { return b.ours.Restore(made, snapshot, n, false) }
				if kind == "clone" {
					create = func() error { return b.ours.Clone(made, volume, n) }
				}
				if err := create(); err != nil {
					return err
				}
				dir, err := b.ours.Mount(made)
				if err != nil {
					return err
				}
				got, err := firstBlock(filepath.Join(dir, dataFile))
				if err == nil && !bytes.Equal(got, want) {
					err = errors.New("its file has other bytes than its source's")
				}
				return err
			})
			if err != nil {
				return nil, fmt.Errorf("%s of %v: %w", kind, n, err)
			}
			took[kind] = append(took[kind], t)
			// Before hydration has written all of it.
			if err := errors.Join(b.ours.Unmount(made), b.ours.Delete(made), b.ours.Wiped()); err != nil {
				return nil, err
			}
		}
		if err := errors.Join(b.ours.DeleteSnapshot(volume, snapshot), b.ours.Wiped()); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// filled makes an ext4 with a file and returns the path of that.
func (b *bench) filled(volume string, length, has size.Bytes) (string, error) {
	if err := b.ours.Create(volume, length, false); err != nil {
		return "", err
	}
	dir, err := b.ours.Mount(volume)
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

// copyOf copies a device to a new volume, and returns how long that took.
func (b *bench) copyOf(from string, length size.Bytes) (took float64, err error) {
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
	took, err = timed(func() error {
		out, err := exec.Command("dd", "if="+from, "of="+to, "bs=4M", "iflag=direct", "oflag=direct", "conv=fsync", "status=none").CombinedOutput()
		if err != nil {
			return fmt.Errorf("dd: %w\n%s", err, out)
		}
		return nil
	})
	return took, errors.Join(err, b.ours.Detach(volume), b.ours.Delete(volume), b.ours.Wiped())
}

// firstBlock reads the first 4 KiB of a file, past the page cache.
func firstBlock(path string) (out []byte, err error) {
	const block = 4096
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// An anonymous mapping is page-aligned, as O_DIRECT needs it.
	b, err := unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, err
	}
	defer unix.Munmap(b)
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, err
	}
	return bytes.Clone(b), nil
}
