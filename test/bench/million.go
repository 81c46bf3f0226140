package main

import (
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/contender"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/fio"
)

// windowAfter is the figure of the same volume when the former layer's store
// has no exceptions.
const windowAfter = "freeze_window/exceptions=0"

func windowExceptions(n size.Bytes) string { return fmt.Sprintf("freeze_window/exceptions=%d", n) }

// exceptions returns how many exceptions the store of a snapshot gets.
func (b *bench) exceptions() size.Bytes {
	if b.quick {
		return 100_000
	}
	return 1_000_000
}

func millionFigures(b *bench) []string {
	return []string{windowExceptions(b.exceptions()), windowAfter}
}

// million takes a snapshot when the former layer's store has a million
// exceptions, and then others when the store has none.
func (b *bench) million() error {
	const volume = "million"
	chunks, fine := b.exceptions(), 4*size.KiB
	length := 2 * chunks * fine
	if err := b.fine.Create(volume, length, true); err != nil {
		return err
	}
	path, err := b.fine.Attach(volume)
	if err != nil {
		return err
	}
	if err := b.fine.Snapshot(volume, volume+"-0", 0); err != nil {
		return err
	}
	// Only every other chunk, because neighbours would share an entry in the kernel's table.
	r, err := fio.Load{Path: path, Pattern: "write:4k", Block: fine, Depth: 64, Span: length.RoundUp(size.MiB) - size.MiB, Amount: chunks * fine}.Run()
	if err != nil {
		return err
	}
	fmt.Printf("%d overwrites, %.0f MiB/s\n", r.Requests, r.Throughput/float64(size.MiB))
	full, err := heldBy(b.fine, volume, volume+"-1")
	if err != nil {
		return err
	}
	snapshots := []string{volume + "-0", volume + "-1"}
	var empty []contender.Window
	for i := range 5 {
		name := fmt.Sprintf("%s-%d", volume, i+2)
		held, err := heldBy(b.fine, volume, name)
		if err != nil {
			return err
		}
		empty, snapshots = append(empty, held), append(snapshots, name)
	}
	ready, err := b.fine.Ready(snapshots[0])
	if err != nil || !ready {
		return fmt.Errorf("the store with the exceptions was lost: %w", err)
	}
	b.addWindows(windowExceptions(chunks), []contender.Window{full}, nil, fmt.Sprintf("one sample; the former store had %d exceptions of 4KiB", r.Requests))
	b.addWindows(windowAfter, empty, nil, "")
	if err := b.fine.Detach(volume); err != nil {
		return err
	}
	return b.fine.Clear(volume, snapshots)
}
