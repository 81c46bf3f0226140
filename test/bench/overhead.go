package main

import (
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/disk"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/figures"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/fio"
)

var overheadBlocks = []size.Bytes{4 * size.KiB, 64 * size.KiB, size.MiB}

func overheadName(block size.Bytes) string { return fmt.Sprintf("fio_overhead/block=%v", block) }

func overheadFigures(*bench) (names []string) {
	for _, block := range overheadBlocks {
		names = append(names, overheadName(block))
	}
	return names
}

// overhead compares a volume without snapshots with the same place of the disk
// below it, by a load of reads and writes in equal parts.
func (b *bench) overhead() error {
	const volume, length = "plain", 256 * size.MiB
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
	at, err := placeOnDisk(path)
	if err != nil {
		return err
	}
	repeat := 40
	if b.quick {
		repeat = 6
	}
	for _, block := range overheadBlocks {
		if !b.wanted(overheadName(block)) {
			continue
		}
		var ours, raw []float64
		for i := range repeat {
			for _, first := range []bool{true, false} {
				l := fio.Load{Pattern: "randrw", Block: block, Depth: writeDepth, Span: length, Time: time.Second}
				into := &raw
				l.Path, l.Offset = string(b.ours.Disk()), at
				if first == (i%2 == 0) { // both come first in a pair equally often
					into = &ours
					l.Path, l.Offset = path, 0
				}
				r, err := l.Run()
				if err != nil {
					return err
				}
				*into = append(*into, r.Throughput/float64(size.MiB))
			}
		}
		b.figures.Add(figures.Series{Name: overheadName(block), Unit: "MiB/s", Better: figures.Higher, Against: figures.RawDisk, Ours: ours, Theirs: raw})
	}
	if err := b.ours.Detach(volume); err != nil {
		return err
	}
	return b.ours.Delete(volume)
}

// placeOnDisk returns the offset on the disk of a volume of one piece.
func placeOnDisk(path string) (size.Bytes, error) {
	device, err := dm.DeviceOf(path)
	if err != nil {
		return 0, err
	}
	c, err := dm.Open()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	info, err := c.InfoByDevice(device)
	if err != nil {
		return 0, err
	}
	table, err := c.Table(info.Name)
	if err != nil {
		return 0, err
	}
	if len(table) == 1 {
		if linear, ok := table[0].Target.(dm.Linear); ok {
			return linear.Offset.Bytes(), nil
		}
	}
	return 0, fmt.Errorf("volume %s is not linear in one piece: %v", path, table)
}
