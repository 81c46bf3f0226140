package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/figures"
)

const manySnapshots = 100

func footprintName(kind string) string { return fmt.Sprintf("%s/snapshots=%d", kind, manySnapshots) }

func footprintFigures(*bench) []string {
	return []string{footprintName("devices"), footprintName("kernel_memory")}
}

// footprint measures the devices and the memory that many snapshots of an
// active volume cost the kernel.
func (b *bench) footprint() error {
	const volume = "kept"
	devices, memory := samples{}, samples{}
	for _, c := range b.contenders() {
		deviceCount, err := mappedDevices()
		if err != nil {
			return err
		}
		before, err := kernelMemory()
		if err != nil {
			return err
		}
		if err := c.Create(volume, size.GiB, true); err != nil {
			return err
		}
		if _, err := c.Attach(volume); err != nil {
			return err
		}
		var snapshots []string
		for i := range manySnapshots {
			name := fmt.Sprintf("kept-%d", i)
			if err := c.Snapshot(volume, name, 64*size.MiB); err != nil {
				return err
			}
			snapshots = append(snapshots, name)
		}
		if err := c.Disk().Quiet(); err != nil {
			return err
		}
		withDevices, err := mappedDevices()
		if err != nil {
			return err
		}
		after, err := kernelMemory()
		if err != nil {
			return err
		}
		devices[c.Title()] = []float64{float64(withDevices - deviceCount)}
		memory[c.Title()] = []float64{(after - before) / float64(size.MiB)}
		if err := c.Detach(volume); err != nil {
			return err
		}
		if err := c.Clear(volume, snapshots); err != nil {
			return err
		}
		// Deleted volumes are wiped through devices of their own.
		if err := c.Disk().Quiet(); err != nil {
			return err
		}
	}
	note := "a volume of 1GiB with 100 snapshots, without the thin pool's own devices and memory"
	b.add(figures.Series{Name: footprintName("devices"), Unit: "devices", Note: note}, devices)
	b.add(figures.Series{Name: footprintName("kernel_memory"), Unit: "MiB",
		Note: "all memory except that of processes and the page cache, after dropping caches"}, memory)
	return nil
}

func mappedDevices() (int, error) {
	all, err := filepath.Glob("/sys/block/dm-*")
	return len(all), err
}

// kernelMemory returns the memory that is neither free, nor a process's, nor
// cache, in bytes.
func kernelMemory() (float64, error) {
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return 0, err
	}
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	kib := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		name, rest, _ := strings.Cut(line, ":")
		value, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		if kib[name], err = strconv.ParseFloat(value, 64); err != nil {
			return 0, fmt.Errorf("/proc/meminfo: %q: %w", line, err)
		}
	}
	used := kib["MemTotal"]
	for _, other := range []string{"MemFree", "Buffers", "Cached", "AnonPages", "PageTables", "SReclaimable"} {
		used -= kib[other]
	}
	return used * float64(size.KiB), nil
}
