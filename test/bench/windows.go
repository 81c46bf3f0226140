package main

import (
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
const (
	windowIdle    = "freeze_window/idle"
	windowWriting = "freeze_window/writing"
	stallIdle     = "freeze_stall/idle"
	stallWriting  = "freeze_stall/writing"
)

func windowFigures(*bench) []string {
	return []string{windowIdle, windowWriting, stallIdle, stallWriting}
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
	if b.anyWanted(windowIdle) {
		if err := b.idleWindows(volume); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		stall, window string
		load          func(dir string) (fio.Load, error)
	}{
		// A reader of the device does not disturb the file system.
		{stallIdle, "", func(dir string) (fio.Load, error) {
			device, err := mountedDevice(dir)
			return fio.Load{Path: device, Pattern: "randread", Block: 4 * size.KiB, Depth: 1, Span: size.GiB, Time: time.Minute}, err
		}},
		{stallWriting, windowWriting, func(dir string) (fio.Load, error) {
			l := fileLoad(dir, 4*size.KiB)
			l.Time = time.Minute
			return l, nil
		}},
	} {
		if !b.anyWanted(s.stall, s.window) {
			continue
		}
		if err := b.stalls(volume, s.stall, s.window, dirs, s.load); err != nil {
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

// idleWindows measures windows by the driver's own clock while nothing else
// runs.
func (b *bench) idleWindows(volume string) error {
	var all []contender.Window
	for range b.windowRepeats() {
		// The volume is idle only once the previous snapshot is folded and
		// wiped.
		if err := b.ours.Disk().Quiet(); err != nil {
			return err
		}
		held, err := heldBy(b.ours, volume, volume+"-next")
		if err != nil {
			return err
		}
		all = append(all, held)
		if err := b.ours.DeleteSnapshot(volume, volume+"-next"); err != nil {
			return err
		}
	}
	b.addWindows(windowIdle, all, "")
	return nil
}

// addWindows adds the figure of the windows, with the median of each of their
// parts.
func (b *bench) addWindows(name string, all []contender.Window, note string) {
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
	b.figures.Add(figures.Series{Name: name, Unit: "ms", Tail: true, Ours: totals, Note: note})
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
func (b *bench) stalls(volume, stall, window string, dirs map[string]string, load func(dir string) (fio.Load, error)) error {
	longest := samples{}
	var held []contender.Window
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
				if c == contender.Contender(b.ours) {
					var took contender.Window
					if took, err = heldBy(b.ours, volume, volume+"-next"); err == nil {
						held = append(held, took)
					}
				} else {
					err = c.Snapshot(volume, volume+"-next", size.GiB)
				}
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
	if window != "" {
		b.addWindows(window, held, "")
	}
	return nil
}
