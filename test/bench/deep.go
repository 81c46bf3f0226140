package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/disk"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/figures"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/fio"
)

// A snapshot takes at least one extent, so a thousand take 4 GiB of the disk,
// in addition to two volumes of deepLength.
const (
	deepVolume = "deep"
	deepLength = 512 * size.MiB
	deepWrites = 100 // between two snapshots
)

// deepSnapshots returns how many snapshots the volume gets.
func (b *bench) deepSnapshots() int {
	if b.quick {
		return 100
	}
	return 1000
}

func deepName(what string, snapshots int) string {
	return fmt.Sprintf("%s/snapshots=%d", what, snapshots)
}

func deepFigures(b *bench) []string {
	return []string{deepName("read_old", b.deepSnapshots()), deepName("restore_first_byte", b.deepSnapshots())}
}

// deep compares the oldest of many snapshots with the newest: how long a
// restore takes until its first bytes can be read, and how fast the snapshot is
// read.
func (b *bench) deep() error {
	snapshots, err := b.deepHistory()
	if err != nil {
		return err
	}
	n := len(snapshots)
	ends := []string{snapshots[0], snapshots[n-1]}
	note := fmt.Sprintf("the oldest against the newest snapshot of a volume of %v; %d blocks were overwritten between two snapshots", deepLength, deepWrites)
	if name := deepName("restore_first_byte", n); b.wanted(name) {
		took, err := b.deepRestores(ends)
		if err != nil {
			return err
		}
		b.figures.Add(figures.Series{Name: name, Unit: "ms", Against: figures.Newest, Ours: took[ends[0]], Theirs: took[ends[1]], Note: note + "; from the request to the first block of the volume"})
	}
	if name := deepName("read_old", n); b.wanted(name) {
		rates, err := b.deepReads(ends)
		if err != nil {
			return err
		}
		b.figures.Add(figures.Series{Name: name, Unit: "MiB/s", Better: figures.Higher, Against: figures.Newest, Ours: rates[ends[0]], Theirs: rates[ends[1]], Note: note + "; 64KiB at random, 16 in flight"})
	}
	if err := b.ours.Detach(deepVolume); err != nil {
		return err
	}
	return b.ours.Clear(deepVolume, snapshots)
}

// deepHistory makes the volume and its snapshots, and returns their names,
// oldest first.
func (b *bench) deepHistory() (snapshots []string, err error) {
	if err := b.ours.Create(deepVolume, deepLength, true); err != nil {
		return nil, err
	}
	path, err := b.ours.Attach(deepVolume)
	if err != nil {
		return nil, err
	}
	if err := disk.Fill(path, 0, deepLength); err != nil {
		return nil, err
	}
	for i := range b.deepSnapshots() {
		name := fmt.Sprintf("%s-%d", deepVolume, i)
		if err := b.ours.Snapshot(deepVolume, name, 0); err != nil {
			return nil, err
		}
		snapshots = append(snapshots, name)
		if err := scatter(path, deepLength, deepWrites); err != nil {
			return nil, err
		}
	}
	return snapshots, nil
}

// scatter overwrites n blocks at random places of a device.
func scatter(path string, length size.Bytes, n int) (err error) {
	const block = 4096
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// O_DIRECT needs page-aligned memory, such as an anonymous mapping.
	b, err := unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	defer unix.Munmap(b)
	for range n {
		b[0] = byte(rand.Uint32())
		if _, err := f.WriteAt(b, rand.Int64N(int64(length)/block)*block); err != nil {
			return err
		}
	}
	return nil
}

// deepRestores measures restores of the snapshots in turns.
func (b *bench) deepRestores(of []string) (samples, error) {
	took, repeat := samples{}, 9
	if b.quick {
		repeat = 3
	}
	for range repeat {
		for _, snapshot := range of {
			if err := b.ours.Disk().Quiet(); err != nil {
				return nil, err
			}
			t, err := timed(func() error {
				if err := b.ours.Restore(restored, snapshot, deepLength, true); err != nil {
					return err
				}
				path, err := b.ours.Attach(restored)
				if err != nil {
					return err
				}
				_, err = firstBlock(path)
				return err
			})
			if err != nil {
				return nil, fmt.Errorf("restore of %s: %w", snapshot, err)
			}
			took.take(snapshot, t)
			if err := errors.Join(b.ours.Detach(restored), b.ours.Delete(restored), b.ours.Wiped()); err != nil {
				return nil, err
			}
		}
	}
	return took, nil
}

// deepReads measures in turns how fast volumes that show the snapshots are
// read.
func (b *bench) deepReads(of []string) (samples, error) {
	rates, paths := samples{}, map[string]string{}
	for _, snapshot := range of {
		if err := b.ours.Show("shown-"+snapshot, snapshot, deepLength); err != nil {
			return nil, err
		}
		path, err := b.ours.Attach("shown-" + snapshot)
		if err != nil {
			return nil, err
		}
		paths[snapshot] = path
	}
	repeat := 15
	if b.quick {
		repeat = 5
	}
	for i := range 2 * repeat {
		snapshot := of[(i+i/2)%2]
		if err := b.ours.Disk().Quiet(); err != nil {
			return nil, err
		}
		r, err := fio.Load{Path: paths[snapshot], Pattern: "randread", Block: 64 * size.KiB, Depth: 16, Span: deepLength, Amount: deepLength / 2}.Run()
		if err != nil {
			return nil, err
		}
		rates.take(snapshot, r.Throughput/float64(size.MiB))
	}
	for _, snapshot := range of {
		if err := errors.Join(b.ours.Detach("shown-"+snapshot), b.ours.Delete("shown-"+snapshot)); err != nil {
			return nil, err
		}
	}
	return rates, nil
}
