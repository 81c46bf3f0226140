package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/contender"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/disk"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/figures"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/fio"
)

// Figures of the moment of a snapshot. The window is measured by the driver's
// own clock. The stall is the longest wait of a request, measured from outside.
//
// A bare freeze is an FIFREEZE and an FITHAW of the same file system, without a
// snapshot. It is measured in turns with the windows, and bounds them from below.
const (
	windowIdle    = "freeze_window/idle"
	windowWriting = "freeze_window/writing"
	windowWriters = "freeze_window/writers=16"
	bareIdle      = "freeze_window/bare"
	bareWriting   = "freeze_window/bare/writing"
	bareWriters   = "freeze_window/bare/writers=16"
	stallIdle     = "freeze_stall/idle"
	stallWriting  = "freeze_stall/writing"
)

// writers is the number of requests that are always in flight for bareWriters.
const writers = 16

func windowFigures(*bench) []string {
	return []string{windowIdle, bareIdle, windowWriting, bareWriting, windowWriters, bareWriters, stallIdle, stallWriting}
}

// windows measures snapshots of a mounted ext4 that has one snapshot, while it
// is idle and while files are written.
func (b *bench) windows() error {
	const volume = "held"
	dirs := map[string]string{}
	for _, c := range b.contenders() {
		if err := c.Create(volume, 2*size.GiB, false); err != nil {
			return err
		}
		dir, err := c.Mount(volume)
		if err != nil {
			return err
		}
		dirs[c.Title()] = dir
		if _, err := fileLoad(dir, size.MiB).Run(); err != nil { // makes the file
			return err
		}
		if err := c.Snapshot(volume, volume+"-first", size.GiB); err != nil {
			return err
		}
	}
	if b.anyWanted(windowIdle, bareIdle) {
		if err := b.turnsWithBare(volume, dirs[contender.Ours], windowIdle, bareIdle, 0); err != nil {
			return err
		}
	}
	if b.anyWanted(windowWriting, bareWriting) {
		if err := b.turnsWithBare(volume, dirs[contender.Ours], windowWriting, bareWriting, 4); err != nil {
			return err
		}
	}
	if b.anyWanted(windowWriters, bareWriters) {
		if err := b.turnsWithBare(volume, dirs[contender.Ours], windowWriters, bareWriters, writers); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		stall string
		load  func(dir string) (fio.Load, error)
	}{
		// A reader of the device does not disturb the file system.
		{stallIdle, func(dir string) (fio.Load, error) {
			device, err := mountedDevice(dir)
			return fio.Load{Path: device, Pattern: "randread", Block: 4 * size.KiB, Depth: 1, Span: size.GiB, Time: time.Minute}, err
		}},
		{stallWriting, func(dir string) (fio.Load, error) {
			return busyLoad(dir, 4), nil
		}},
	} {
		if !b.anyWanted(s.stall) {
			continue
		}
		if err := b.stalls(volume, s.stall, dirs, s.load); err != nil {
			return err
		}
	}
	for _, c := range b.contenders() {
		if err := c.Unmount(volume); err != nil {
			return err
		}
		if err := c.Clear(volume, []string{volume + "-first"}); err != nil {
			return err
		}
	}
	return nil
}

// fileLoad returns a load that writes to a file of 256 MiB.
func fileLoad(dir string, block size.Bytes) fio.Load {
	return fio.Load{Path: filepath.Join(dir, "file"), Pattern: "randwrite", Block: block, Depth: 4, Span: 256 * size.MiB}
}

// busyLoad returns a load of small writes to the file, with so many in flight.
func busyLoad(dir string, depth int) fio.Load {
	l := fileLoad(dir, 4*size.KiB)
	l.Depth, l.Time = depth, time.Minute
	return l
}

// mountedDevice returns the device that is mounted at dir.
func mountedDevice(dir string) (string, error) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == dir {
			return f[0], nil
		}
	}
	return "", fmt.Errorf("nothing is mounted at %s", dir)
}

func (b *bench) windowRepeats() int {
	if b.quick {
		return 5
	}
	return 20
}

// turnsWithBare measures windows by the driver's own clock, and bare freezes of the
// same file system, in turns. Meanwhile depth writes are in flight; none if depth is 0.
func (b *bench) turnsWithBare(volume, dir, window, bare string, depth int) error {
	var cuts, freezes []contender.Window
	for range b.windowRepeats() {
		held, err := b.under(dir, depth, func() (contender.Window, error) { return heldBy(b.ours, volume, volume+"-next") })
		if err != nil {
			return err
		}
		cuts = append(cuts, held)
		if err := b.ours.DeleteSnapshot(volume, volume+"-next"); err != nil {
			return err
		}
		held, err = b.under(dir, depth, func() (contender.Window, error) { return contender.BareFreeze(dir) })
		if err != nil {
			return err
		}
		freezes = append(freezes, held)
	}
	b.addWindows(window, cuts, freezes, "")
	b.addWindows(bare, freezes, nil, "")
	return nil
}

// under measures a window while depth writes to the file in dir are in flight.
func (b *bench) under(dir string, depth int, measure func() (contender.Window, error)) (held contender.Window, err error) {
	// The volume is idle only once the previous snapshot is folded and wiped.
	if err := b.ours.Disk().Quiet(); err != nil || depth == 0 {
		if err == nil {
			held, err = measure()
		}
		return held, err
	}
	mounted, err := mountedDevice(dir)
	if err != nil {
		return held, err
	}
	running, err := busyLoad(dir, depth).Start()
	if err != nil {
		return held, err
	}
	if err = disk.Disk(mounted).Busy(500); err == nil {
		held, err = measure()
	}
	_, stopped := running.Stop()
	return held, errors.Join(err, stopped)
}

// addWindows adds the figure of the windows, with the median of each of their
// parts, against bare freezes if there are any.
func (b *bench) addWindows(name string, all, bare []contender.Window, note string) {
	if !b.wanted(name) {
		return
	}
	var totals []float64
	parts, order := map[string][]float64{}, []string(nil)
	for _, w := range all {
		totals = append(totals, milliseconds(w.Total))
		for _, p := range w.Parts {
			if parts[p.Name] == nil {
				order = append(order, p.Name)
			}
			parts[p.Name] = append(parts[p.Name], milliseconds(p.Took))
		}
	}
	for i, name := range order {
		order[i] = fmt.Sprintf("%s %.2f ms", name, figures.Median(parts[name]))
	}
	if len(order) > 0 {
		note = strings.TrimPrefix(note+"; medians: "+strings.Join(order, ", "), "; ")
	}
	f := figures.Series{Name: name, Unit: "ms", Tail: true, Ours: totals, Note: note}
	for _, w := range bare {
		f.Against, f.Theirs = figures.Bare, append(f.Theirs, milliseconds(w.Total))
	}
	b.figures.Add(f)
}

// heldBy takes a snapshot and returns how long the volume was held for it.
func heldBy(d *contender.Driver, volume, snapshot string) (w contender.Window, err error) {
	before, err := d.Held()
	if err != nil {
		return w, err
	}
	if err := d.Snapshot(volume, snapshot, 0); err != nil {
		return w, err
	}
	after, err := d.Held()
	if err != nil {
		return w, err
	}
	if len(after) != len(before)+1 {
		return w, fmt.Errorf("the driver's log has %d entries that volume %s was held for snapshot %s, want one", len(after)-len(before), volume, snapshot)
	}
	return after[len(before)], nil
}

// stalls measures the longest wait of a load's requests while a snapshot is
// taken.
func (b *bench) stalls(volume, stall string, dirs map[string]string, load func(dir string) (fio.Load, error)) error {
	longest := samples{}
	for range b.windowRepeats() / 2 {
		for _, c := range b.contenders() {
			l, err := load(dirs[c.Title()])
			if err != nil {
				return err
			}
			if err := c.Disk().Quiet(); err != nil {
				return err
			}
			mounted, err := mountedDevice(dirs[c.Title()])
			if err != nil {
				return err
			}
			loaded := disk.Disk(mounted) // the disk below may also have other load
			running, err := l.Start()
			if err != nil {
				return err
			}
			err = loaded.Busy(500)
			if err == nil {
				err = c.Snapshot(volume, volume+"-next", size.GiB)
			}
			if err == nil {
				err = loaded.Busy(200) // the requests that waited have completed
			}
			r, stopped := running.Stop()
			if err != nil {
				return err
			}
			if stopped != nil {
				return stopped
			}
			longest[c.Title()] = append(longest[c.Title()], milliseconds(r.Max))
			if err := c.DeleteSnapshot(volume, volume+"-next"); err != nil {
				return err
			}
		}
	}
	b.add(figures.Series{Name: stall, Unit: "ms", Note: "the longest wait of a 4KiB request, by fio"}, longest)
	return nil
}
