package main

import (
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/contender"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/figures"
)

const (
	turnSize   = 64 * size.MiB
	originSize = size.GiB
)

var volumeCounts = []int{0, 100, 600}

func turnName(verb, kind string, volumes int) string {
	return fmt.Sprintf("%s_%s/volumes=%d", verb, kind, volumes)
}

func turnFigures(*bench) (names []string) {
	for _, n := range volumeCounts {
		for _, kind := range []string{"volume", "snapshot"} {
			names = append(names, turnName("create", kind, n), turnName("delete", kind, n))
		}
	}
	return names
}

// turns measures creating and deleting volumes and snapshots while more and
// more other volumes exist.
func (b *bench) turns() error {
	have := 0
	for _, n := range volumeCounts {
		volume := b.anyWanted(turnName("create", "volume", n), turnName("delete", "volume", n))
		snapshot := b.anyWanted(turnName("create", "snapshot", n), turnName("delete", "snapshot", n))
		if !volume && !snapshot {
			continue
		}
		if err := b.fill(have, n); err != nil {
			return err
		}
		have = n
		if volume {
			if err := b.volumeTurns(n); err != nil {
				return err
			}
		}
		if snapshot {
			if err := b.snapshotTurns(n); err != nil {
				return err
			}
		}
	}
	for i := range have {
		if err := b.ours.Delete(contender.FillName(i)); err != nil {
			return err
		}
	}
	return nil // lvm2's volumes stay: they slow down the other parts no more than on a node
}

// fill fills all groups up to n volumes with the same kind of metadata.
func (b *bench) fill(from, n int) error {
	for i := from; i < n; i++ {
		if err := b.ours.Create(contender.FillName(i), contender.FillSize, false); err != nil {
			return err
		}
	}
	if err := b.theirs.Fill(from, n); err != nil {
		return err
	}
	if b.thin != nil {
		return b.thin.Fill(from, n)
	}
	return nil
}

// volumeTurns measures a volume that never gets a device.
func (b *bench) volumeTurns(n int) error {
	return b.pairs("volume", n,
		func(c contender.Contender) error { return c.Create("measured", turnSize, false) },
		func(c contender.Contender) error { return c.Delete("measured") })
}

// snapshotTurns measures the only snapshot of a mounted ext4 that is idle.
func (b *bench) snapshotTurns(n int) error {
	for _, c := range b.contenders() {
		if err := c.Create("origin", originSize, false); err != nil {
			return err
		}
		if _, err := c.Mount("origin"); err != nil {
			return err
		}
	}
	err := b.pairs("snapshot", n,
		func(c contender.Contender) error { return c.Snapshot("origin", "measured-snap", originSize/10) },
		func(c contender.Contender) error { return c.DeleteSnapshot("origin", "measured-snap") })
	if err != nil {
		return err
	}
	for _, c := range b.contenders() {
		if err := c.Unmount("origin"); err != nil {
			return err
		}
		if err := c.Delete("origin"); err != nil {
			return err
		}
	}
	return nil
}

// pairs measures make and unmake for each contender, in turns.
func (b *bench) pairs(kind string, n int, make, unmake func(contender.Contender) error) error {
	repeat := 15
	if b.quick {
		repeat = 5
	}
	room, err := b.ours.Free()
	if err != nil {
		return err
	}
	made, unmade := samples{}, samples{}
	for range repeat {
		for _, step := range []struct {
			do   func(contender.Contender) error
			took samples
		}{{make, made}, {unmake, unmade}} {
			for _, c := range b.contenders() {
				took, err := timed(func() error { return step.do(c) })
				if err != nil {
					return err
				}
				step.took[c.Title()] = append(step.took[c.Title()], took)
			}
		}
		if err := b.settled(room); err != nil {
			return err
		}
	}
	b.add(figures.Series{Name: turnName("create", kind, n), Unit: "ms", Tail: true}, made)
	b.add(figures.Series{Name: turnName("delete", kind, n), Unit: "ms", Tail: true}, unmade)
	return nil
}

// settled waits until deleted volumes are wiped, which is not part of the
// measurement.
func (b *bench) settled(room size.Bytes) error {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if free, err := b.ours.Free(); err != nil || free == room {
			return err
		}
	}
	return fmt.Errorf("deleted volumes are not wiped after one minute")
}
