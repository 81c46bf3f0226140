package main

import (
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/contender"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/disk"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/figures"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/fio"
)

// span is the part of a volume that one measurement overwrites, and that
// nothing else overwrites. So each of its blocks is overwritten for the first
// time since all snapshots.
const (
	span       = 32 * size.MiB
	writeDepth = 16
)

// writeLoad describes a load of writes of one length.
type writeLoad struct {
	block   size.Bytes
	pattern string
	amount  size.Bytes // how much of a span is written
}

var writeLoads = []writeLoad{
	// Each write is in another 64 KiB, so that its chunk is not copied already.
	{4 * size.KiB, "write:60k", span / 16},
	{64 * size.KiB, "randwrite", span},
	{size.MiB, "randwrite", span},
}

func (l writeLoad) name(kind string, snapshots int) string {
	return fmt.Sprintf("%s/block=%v/snapshots=%d", kind, l.block, snapshots)
}

// names returns the names of the figures of one measurement.
func (l writeLoad) names(snapshots int) (cost, throughput, p99 string) {
	return l.name("write_cost", snapshots), l.name("write_throughput", snapshots), l.name("write_p99", snapshots)
}

func (l writeLoad) allNames(snapshots int) []string {
	cost, throughput, p99 := l.names(snapshots)
	return []string{cost, throughput, p99}
}

func (b *bench) snapshotCounts() []int {
	if b.quick {
		return []int{0, 1, 4, 16}
	}
	return []int{0, 1, 2, 4, 8, 16, 64}
}

func writeFigures(b *bench) (all []string) {
	for _, n := range b.snapshotCounts() {
		all = append(all, writeNames(n)...)
	}
	return all
}

func writeNames(snapshots int) (all []string) {
	for _, l := range writeLoads {
		all = append(all, l.allNames(snapshots)...)
	}
	return all
}

// writes measures how a volume that has more and more snapshots is overwritten.
func (b *bench) writes() error {
	const volume = "written"
	repeat := 5
	if b.quick {
		repeat = 2
	}
	length := span // the first span is written between the snapshots
	for _, n := range b.snapshotCounts() {
		for _, l := range writeLoads {
			if b.anyWanted(l.allNames(n)...) {
				length += span * size.Bytes(repeat)
			}
		}
	}
	paths := map[string]string{}
	for _, c := range b.contenders() {
		if err := c.Create(volume, length, true); err != nil {
			return err
		}
		path, err := c.Attach(volume)
		if err != nil {
			return err
		}
		// Blocks that were never written cost more on a sparse disk, and on dm-thin.
		if err := disk.Fill(path, 0, length); err != nil {
			return err
		}
		paths[c.Title()] = path
	}
	var snapshots []string
	at := span
	for _, n := range b.snapshotCounts() {
		if !b.anyWanted(writeNames(n)...) {
			continue
		}
		for len(snapshots) < n {
			name := fmt.Sprintf("written-%d", len(snapshots))
			for _, c := range b.contenders() {
				if err := disk.Fill(paths[c.Title()], 0, size.MiB); err != nil {
					return err
				}
				if err := c.Snapshot(volume, name, length+length/64); err != nil {
					return err
				}
			}
			snapshots = append(snapshots, name)
		}
		for _, l := range writeLoads {
			if !b.anyWanted(l.allNames(n)...) {
				continue
			}
			if err := b.overwrite(l, n, repeat, paths, &at); err != nil {
				return err
			}
		}
	}
	if len(snapshots) > 0 {
		// If the newest snapshot was lost, the measured writes had no snapshot.
		if ready, err := b.ours.Ready(snapshots[len(snapshots)-1]); err != nil || !ready {
			return fmt.Errorf("the newest snapshot was lost during the measurement: %w", err)
		}
	}
	for _, c := range b.contenders() {
		if err := c.Detach(volume); err != nil {
			return err
		}
		if err := c.Clear(volume, snapshots); err != nil {
			return err
		}
	}
	return nil
}

// overwrite measures one kind of load, beginning at the offset at. It advances
// at.
func (b *bench) overwrite(l writeLoad, snapshots, repeat int, paths map[string]string, at *size.Bytes) error {
	cost, throughput, p99 := l.names(snapshots)
	costs, throughputs, p99s := samples{}, samples{}, samples{}
	for range repeat {
		for _, c := range b.contenders() {
			t := c.Title()
			if err := c.Disk().Quiet(); err != nil {
				return err
			}
			before, err := c.Disk().Counters()
			if err != nil {
				return err
			}
			r, err := fio.Load{Path: paths[t], Pattern: l.pattern, Block: l.block, Depth: writeDepth,
				Offset: *at, Span: span, Amount: l.share(c, snapshots), Flush: true}.Run()
			if err != nil {
				return err
			}
			after, err := c.Disk().Counters()
			if err != nil {
				return err
			}
			costs[t] = append(costs[t], float64(after.Written-before.Written)/float64(r.Bytes))
			throughputs[t] = append(throughputs[t], r.Throughput/float64(size.MiB))
			p99s[t] = append(p99s[t], milliseconds(r.P99))
		}
		*at += span
	}
	b.add(figures.Series{Name: cost, Unit: "bytes"}, costs)
	b.add(figures.Series{Name: throughput, Unit: "MiB/s", Better: figures.Higher}, throughputs)
	b.add(figures.Series{Name: p99, Unit: "ms"}, p99s)
	return nil
}

// share returns how many bytes to write. Where each write is copied into every
// snapshot, share is smaller with many snapshots.
func (l writeLoad) share(c contender.Contender, snapshots int) size.Bytes {
	const copied = 128 * size.MiB
	if c.Title() != figures.LVM2 {
		return l.amount
	}
	all := l.amount * max(1, chunk/l.block) * size.Bytes(snapshots)
	return max(l.block, (l.amount / max(1, all/copied)).RoundUp(l.block))
}
