package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/disk"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/figures"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/fio"
)

const (
	hydrationThroughput = "hydration_throughput"
	foregroundSource    = "foreground_p99/hydrating=source"
	foregroundFork      = "foreground_p99/hydrating=fork"

	mirrorThroughput = "hydration_throughput/mirror"

	plainCopy = "dd of the same bytes"
	bareCopy  = "one mirror of the kernel's"
	noCopy    = "nothing hydrates"

	hydratedSize     = 2 * size.GiB
	hydratedSnapshot = "hydrated-snap"
)

// forkLoads are the loads that write to a volume while it is hydrated.
var forkLoads = []fio.Load{
	{Pattern: "write:60k", Block: 4 * size.KiB, Depth: writeDepth, Span: 512 * size.MiB, Amount: 32 * size.MiB},
	{Pattern: "randwrite", Block: 64 * size.KiB, Depth: writeDepth, Span: 64 * size.MiB},
}

func forkCostName(block size.Bytes) string { return fmt.Sprintf("write_cost_fork/block=%v", block) }

func forkCostNames() (all []string) {
	for _, l := range forkLoads {
		all = append(all, forkCostName(l.Block))
	}
	return all
}

func hydrationFigures(*bench) []string {
	return append([]string{hydrationThroughput, mirrorThroughput, foregroundSource, foregroundFork}, forkCostNames()...)
}

func (b *bench) hydrationRepeats() int {
	if b.quick {
		return 2
	}
	return 5
}

// hydration measures how fast a restored volume becomes an ordinary one, and
// how much this slows down the users of the volume and of its source.
func (b *bench) hydration() error {
	const volume = "hydrated-origin"
	if err := b.ours.Create(volume, hydratedSize, true); err != nil {
		return err
	}
	path, err := b.ours.Attach(volume)
	if err != nil {
		return err
	}
	if err := disk.Fill(path, 0, hydratedSize); err != nil {
		return err
	}
	for _, m := range []struct {
		run   func(volume, path string) error
		names []string
	}{
		{b.throughput, []string{hydrationThroughput, mirrorThroughput}},
		{b.foreground, []string{foregroundSource, foregroundFork}},
		{b.forkCosts, forkCostNames()},
	} {
		if !b.anyWanted(m.names...) {
			continue
		}
		if err := m.run(volume, path); err != nil {
			return err
		}
	}
	return errors.Join(b.ours.Detach(volume), b.ours.Delete(volume), b.ours.Wiped())
}

// onFork takes a snapshot of the volume and calls f, which restores the
// snapshot to the given name. It then deletes both.
func (b *bench) onFork(volume string, f func(fork string) error) error {
	const fork = "hydrated"
	if err := b.ours.Snapshot(volume, hydratedSnapshot, 0); err != nil {
		return err
	}
	if err := b.ours.Disk().Quiet(); err != nil {
		return err
	}
	if err := f(fork); err != nil {
		return err
	}
	return errors.Join(b.ours.Delete(fork), b.ours.DeleteSnapshot(volume, hydratedSnapshot), b.ours.Wiped())
}

// ended waits until the fork is hydrated, if it is hydrating, and until the
// disk is quiet.
func (b *bench) ended(fork string, hydrating bool) error {
	if hydrating {
		if err := b.ours.Hydrated(fork); err != nil {
			return err
		}
	}
	return b.ours.Disk().Quiet()
}

// throughput measures hydration on an idle machine, from the request for the
// volume to the end. It compares hydration with dd, and with one kernel mirror,
// the target by which hydration copies.
func (b *bench) throughput(volume, path string) error {
	rate := func(milliseconds float64) float64 { return float64(hydratedSize/size.MiB) / milliseconds * 1000 }
	all := []figures.Series{{Name: hydrationThroughput, Against: plainCopy}, {Name: mirrorThroughput, Against: bareCopy}}
	copies := []func(from, to string) error{dd, mirror}
	// A first copy is not counted: if the disk is a sparse file, the first
	// write to it also allocates space.
	if _, err := b.copyOf(path, hydratedSize, dd); err != nil {
		return err
	}
	for range b.hydrationRepeats() {
		err := b.onFork(volume, func(fork string) error {
			took, err := timed(func() error {
				if err := b.ours.Restore(fork, hydratedSnapshot, hydratedSize, true); err != nil {
					return err
				}
				return b.ours.Hydrated(fork)
			})
			for i := range all {
				all[i].Ours = append(all[i].Ours, rate(took))
			}
			return err
		})
		if err != nil {
			return err
		}
		for i, by := range copies {
			took, err := b.copyOf(path, hydratedSize, by)
			if err != nil {
				return err
			}
			all[i].Theirs = append(all[i].Theirs, rate(took))
		}
	}
	for _, s := range all {
		if s.Unit, s.Better = "MiB/s", figures.Higher; b.wanted(s.Name) {
			b.figures.Add(s)
		}
	}
	return nil
}

// foregroundLoad returns a load of small requests, half of them reads.
func (b *bench) foregroundLoad(path string) fio.Load {
	l := fio.Load{Path: path, Pattern: "randrw", Block: 4 * size.KiB, Depth: 4, Span: size.GiB, Time: 5 * time.Second}
	if b.quick {
		l.Time = 2 * time.Second
	}
	return l
}

// foreground measures the latency of requests while a fork hydrates, and of the
// same requests while nothing hydrates. For the source, the idle case has
// another snapshot of the same kind; for the fork, the fork is an ordinary
// volume then.
func (b *bench) foreground(volume, path string) error {
	source := figures.Series{Name: foregroundSource, Unit: "ms", Against: noCopy}
	fork := figures.Series{Name: foregroundFork, Unit: "ms", Against: noCopy}
	for range b.hydrationRepeats() {
		if b.wanted(source.Name) {
			if err := b.sourceLatency(volume, path, &source); err != nil {
				return err
			}
		}
		if b.wanted(fork.Name) {
			if err := b.forkLatency(volume, &fork); err != nil {
				return err
			}
		}
	}
	for _, s := range []figures.Series{source, fork} {
		if b.wanted(s.Name) {
			b.figures.Add(s)
		}
	}
	return nil
}

// tooShort adds a note if hydration ended before the measurement.
func tooShort(s *figures.Series, hydrating bool) {
	if !hydrating {
		s.Note = "hydration ended before the load did"
	}
}

func (b *bench) sourceLatency(volume, path string, s *figures.Series) error {
	const snapshot = "hydrated-idle"
	if err := b.ours.Snapshot(volume, snapshot, 0); err != nil {
		return err
	}
	if err := b.ours.Disk().Quiet(); err != nil {
		return err
	}
	idle, err := b.foregroundLoad(path).Run()
	if err != nil {
		return err
	}
	if err := b.ours.DeleteSnapshot(volume, snapshot); err != nil {
		return err
	}
	return b.onFork(volume, func(fork string) error {
		if err := b.ours.Restore(fork, hydratedSnapshot, hydratedSize, true); err != nil {
			return err
		}
		busy, err := b.foregroundLoad(path).Run()
		if err != nil {
			return err
		}
		hydrating, err := b.ours.Hydrating(fork)
		tooShort(s, hydrating)
		s.Ours, s.Theirs = append(s.Ours, milliseconds(busy.P99)), append(s.Theirs, milliseconds(idle.P99))
		return err
	})
}

func (b *bench) forkLatency(volume string, s *figures.Series) error {
	return b.onFork(volume, func(fork string) error {
		if err := b.ours.Restore(fork, hydratedSnapshot, hydratedSize, true); err != nil {
			return err
		}
		path, err := b.ours.Attach(fork)
		if err != nil {
			return err
		}
		busy, err := b.foregroundLoad(path).Run()
		if err != nil {
			return err
		}
		hydrating, err := b.ours.Hydrating(fork)
		if err != nil {
			return err
		}
		tooShort(s, hydrating)
		if err := b.ended(fork, hydrating); err != nil {
			return err
		}
		idle, err := b.foregroundLoad(path).Run()
		if err != nil {
			return err
		}
		s.Ours, s.Theirs = append(s.Ours, milliseconds(busy.P99)), append(s.Theirs, milliseconds(idle.P99))
		return b.ours.Detach(fork)
	})
}

// forkCosts measures how many bytes reach the disk for each byte that is
// written to a volume while it is hydrated, without the bytes that hydration
// copies anyway.
func (b *bench) forkCosts(volume, _ string) error {
	for _, l := range forkLoads {
		s := figures.Series{Name: forkCostName(l.Block), Unit: "bytes", Note: "in addition to the hydrated bytes; includes wiping all of the fork's store afterwards"}
		if !b.wanted(s.Name) {
			continue
		}
		for range b.hydrationRepeats() {
			if err := b.forkCost(volume, l, &s); err != nil {
				return err
			}
		}
		b.figures.Add(s)
	}
	return nil
}

func (b *bench) forkCost(volume string, l fio.Load, s *figures.Series) error {
	return b.onFork(volume, func(fork string) error {
		before, err := b.ours.Disk().Counters()
		if err != nil {
			return err
		}
		if err := b.ours.Restore(fork, hydratedSnapshot, hydratedSize, true); err != nil {
			return err
		}
		if l.Path, err = b.ours.Attach(fork); err != nil {
			return err
		}
		r, err := l.Run()
		if err != nil {
			return err
		}
		hydrating, err := b.ours.Hydrating(fork)
		if err != nil {
			return err
		}
		tooShort(s, hydrating)
		if err := b.ended(fork, hydrating); err != nil {
			return err
		}
		after, err := b.ours.Disk().Counters()
		if err != nil {
			return err
		}
		s.Ours = append(s.Ours, float64(after.Written-before.Written-hydratedSize)/float64(r.Bytes))
		return b.ours.Detach(fork)
	})
}
