package main

import (
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/contender"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/figures"
)

const (
	manyCallers   = 64
	callersBeside = 1000 // other volumes
	callersSize   = 4 * size.MiB
)

func callersName(verb string) string { return fmt.Sprintf("%s_volume/callers=%d", verb, manyCallers) }

func callerFigures(*bench) []string { return []string{callersName("create"), callersName("delete")} }

// callers measures how many volumes many callers make and delete in a second, while the
// pool has other volumes. lvm2's commands exclude each other, so they have one caller.
func (b *bench) callers() error {
	var beside, names []string
	for i := range callersBeside {
		beside = append(beside, contender.FillName(i))
	}
	for i := range 4 * manyCallers {
		names = append(names, fmt.Sprintf("called-%d", i))
	}
	if err := b.ours.CreateMany(beside, callersSize, manyCallers); err != nil {
		return err
	}
	if err := b.theirs.Fill(0, callersBeside); err != nil {
		return err
	}
	room, err := b.ours.Free()
	if err != nil {
		return err
	}
	made, unmade := samples{}, samples{}
	rate := func(s samples, title string, n int, f func() error) error {
		took, err := timed(f)
		s.take(title, float64(n)*milliseconds(time.Second)/took)
		return err
	}
	rounds := 5
	if b.quick {
		rounds = 2
	}
	for range rounds {
		steps := []func() error{
			func() error {
				return rate(made, contender.Ours, len(names), func() error { return b.ours.CreateMany(names, callersSize, manyCallers) })
			},
			func() error {
				return rate(made, figures.LVM2, 1, func() error { return b.theirs.Create("called", callersSize, false) })
			},
			func() error {
				return rate(unmade, contender.Ours, len(names), func() error { return b.ours.DeleteMany(names, manyCallers) })
			},
			func() error {
				return rate(unmade, figures.LVM2, 1, func() error { return b.theirs.Delete("called") })
			},
			func() error { return b.settled(room) },
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return err
			}
		}
	}
	about := fmt.Sprintf("%d callers against one of lvm2's, while there are %d other volumes", manyCallers, callersBeside)
	b.add(figures.Series{Name: callersName("create"), Unit: "volumes/s", Better: figures.Higher, Note: about}, made)
	b.add(figures.Series{Name: callersName("delete"), Unit: "volumes/s", Better: figures.Higher, Note: about}, unmade)
	return b.ours.DeleteMany(beside, manyCallers)
}
