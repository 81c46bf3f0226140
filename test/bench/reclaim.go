package main

import (
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/contender"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/disk"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/figures"
)

const (
	reclaimTime  = "reclaim/time"
	reclaimBytes = "reclaim/bytes_written"
	reclaimFreed = "reclaim/bytes_freed"
	deleteMiddle = "delete_snapshot/middle"
)

func reclaimFigures(*bench) []string {
	return []string{deleteMiddle, reclaimTime, reclaimBytes, reclaimFreed}
}

// reclaim deletes the middle one of three snapshots. Before it, and again after
// it, 64 MiB were overwritten at the same place. Two layers hold this place,
// and one copy becomes free. After it, another 16 MiB were overwritten, which
// the older layer must take over.
func (b *bench) reclaim() error {
	const volume, both, moved = "reclaimed", 64 * size.MiB, 16 * size.MiB
	repeat := 5
	if b.quick {
		repeat = 2
	}
	call, took, written := samples{}, samples{}, samples{}
	var freed []float64
	for i := range repeat {
		for _, c := range b.contenders() {
			snapshots := []string{fmt.Sprintf("old-%d", i), fmt.Sprintf("middle-%d", i), fmt.Sprintf("new-%d", i)}
			if err := history(c, volume, snapshots, both, moved); err != nil {
				return err
			}
			ours := c == contender.Contender(b.ours)
			free, err := b.ours.Free()
			if err != nil {
				return err
			}
			before, err := c.Disk().Counters()
			if err != nil {
				return err
			}
			began := time.Now()
			deletion, err := timed(func() error { return c.DeleteSnapshot(volume, snapshots[1]) })
			if err != nil {
				return err
			}
			done := deletion
			if ours {
				if err := b.regained(free, both-moved); err != nil {
					return err
				}
				done = milliseconds(time.Since(began))
			}
			if err := c.Disk().Quiet(); err != nil {
				return err
			}
			after, err := c.Disk().Counters()
			if err != nil {
				return err
			}
			t := c.Title()
			call[t], took[t] = append(call[t], deletion), append(took[t], done)
			written[t] = append(written[t], float64(after.Written-before.Written)/float64(size.MiB))
			if ours {
				now, err := b.ours.Free()
				if err != nil {
					return err
				}
				freed = append(freed, float64(now-free)/float64(size.MiB))
			}
			if err := c.Detach(volume); err != nil {
				return err
			}
			if err := c.Clear(volume, []string{snapshots[0], snapshots[2]}); err != nil {
				return err
			}
			if err := c.Disk().Quiet(); err != nil {
				return err
			}
		}
	}
	b.add(figures.Series{Name: deleteMiddle, Unit: "ms"}, call)
	b.add(figures.Series{Name: reclaimTime, Unit: "ms", Note: "until the space can be used again; ours moves 16 MiB and wipes the freed space, the others wipe nothing"}, took)
	b.add(figures.Series{Name: reclaimBytes, Unit: "MiB", Note: "written to the disk, including wiping"}, written)
	if b.wanted(reclaimFreed) {
		b.figures.Add(figures.Series{Name: reclaimFreed, Unit: "MiB", Ours: freed})
	}
	return nil
}

// history makes a block volume with three snapshots.
func history(c contender.Contender, volume string, snapshots []string, both, moved size.Bytes) error {
	if err := c.Create(volume, size.GiB, true); err != nil {
		return err
	}
	path, err := c.Attach(volume)
	if err != nil {
		return err
	}
	if err := disk.Fill(path, 0, 256*size.MiB); err != nil {
		return err
	}
	for i, overwrite := range []size.Bytes{both, both + moved, 0} {
		if err := c.Snapshot(volume, snapshots[i], 256*size.MiB); err != nil {
			return err
		}
		if err := disk.Fill(path, 0, overwrite); err != nil {
			return err
		}
	}
	return c.Disk().Quiet()
}

// regained waits until the pool's free space has grown by more.
func (b *bench) regained(before, more size.Bytes) error {
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		now, err := b.ours.Free()
		if err != nil || now >= before+more {
			return err
		}
	}
	return fmt.Errorf("the space of a deleted snapshot is not free after two minutes")
}
