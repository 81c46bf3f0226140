package main

import (
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/disk"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/figures"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/fio"
)

const flatSnapshots = 16

func flatName(l writeLoad) string {
	return fmt.Sprintf("write_flat/block=%v/snapshots=%d", l.block, flatSnapshots)
}

func flatFigures(*bench) (names []string) {
	for _, l := range writeLoads {
		names = append(names, flatName(l))
	}
	return names
}

// flat compares overwriting a volume that has many snapshots with overwriting
// one that has one, both of the driver's. The pairs alternate, so that other
// load of the machine affects both alike.
func (b *bench) flat() error {
	repeat := 15
	if b.quick {
		repeat = 6
	}
	length := size.MiB
	for _, l := range writeLoads {
		if b.wanted(flatName(l)) {
			length += span * size.Bytes(repeat)
		}
	}
	volumes := map[int]string{1: "flat-one", flatSnapshots: "flat-many"}
	paths, snapshots := map[int]string{}, map[int][]string{}
	for n, volume := range volumes {
		if err := b.ours.Create(volume, length, true); err != nil {
			return err
		}
		path, err := b.ours.Attach(volume)
		if err != nil {
			return err
		}
		if err := disk.Fill(path, 0, length); err != nil {
			return err
		}
		for i := range n {
			name := fmt.Sprintf("%s-%d", volume, i)
			if err := disk.Fill(path, 0, size.MiB); err != nil {
				return err
			}
			if err := b.ours.Snapshot(volume, name, 0); err != nil {
				return err
			}
			snapshots[n] = append(snapshots[n], name)
		}
		paths[n] = path
	}
	at := size.MiB
	for _, l := range writeLoads {
		if !b.wanted(flatName(l)) {
			continue
		}
		got := map[int][]float64{}
		for i := range repeat {
			order := []int{1, flatSnapshots}
			if i%2 == 1 {
				order = []int{flatSnapshots, 1}
			}
			for _, n := range order {
				if err := b.ours.Disk().Quiet(); err != nil {
					return err
				}
				r, err := fio.Load{Path: paths[n], Pattern: l.pattern, Block: l.block, Depth: writeDepth,
					Offset: at, Span: span, Amount: l.amount, Flush: true}.Run()
				if err != nil {
					return err
				}
				got[n] = append(got[n], r.Throughput/float64(size.MiB))
			}
			at += span
		}
		b.figures.Add(figures.Series{Name: flatName(l), Unit: "MiB/s", Better: figures.Higher, Against: figures.OneSnapshot,
			Ours: got[flatSnapshots], Theirs: got[1]})
	}
	for n, volume := range volumes {
		ready, err := b.ours.Ready(snapshots[n][n-1])
		if err != nil || !ready {
			return fmt.Errorf("the newest snapshot of %s was lost during the measurement: %w", volume, err)
		}
		if err := b.ours.Detach(volume); err != nil {
			return err
		}
		if err := b.ours.Clear(volume, snapshots[n]); err != nil {
			return err
		}
	}
	return nil
}
