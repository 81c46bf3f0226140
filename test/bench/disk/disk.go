// Package disk reads from sysfs how many requests and bytes have reached a
// block device.
package disk

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/directio"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Disk is the path of a block device's node.
type Disk string

// Counters are totals since the device was made.
type Counters struct {
	Requests uint64 // completed, of any kind
	Written  size.Bytes
}

// Counters reads the counters (Documentation/block/stat.rst of the kernel).
func (d Disk) Counters() (Counters, error) {
	device, err := dm.DeviceOf(string(d))
	if err != nil {
		return Counters{}, err
	}
	path := fmt.Sprintf("/sys/dev/block/%v/stat", device)
	text, err := os.ReadFile(path)
	if err != nil {
		return Counters{}, err
	}
	fields := strings.Fields(string(text))
	if len(fields) < 11 {
		return Counters{}, fmt.Errorf("%s has %d fields, not 11 or more", path, len(fields))
	}
	var n [7]uint64
	for i := range n {
		if n[i], err = strconv.ParseUint(fields[i], 10, 64); err != nil {
			return Counters{}, fmt.Errorf("%s: %w", path, err)
		}
	}
	return Counters{Requests: n[0] + n[4], Written: size.Sectors(n[6]).Bytes()}, nil
}

// Quiet waits until nothing has been written to the disk for a while, so that
// earlier work is not measured.
func (d Disk) Quiet() error {
	const still, limit = 300 * time.Millisecond, 3 * time.Minute
	var before Counters
	since := time.Now()
	for end := since.Add(limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		now, err := d.Counters()
		if err != nil {
			return err
		}
		// Reads do not count: the driver and lvm2 regularly read the metadata.
		if now.Written != before.Written {
			before, since = now, time.Now()
		}
		if time.Since(since) >= still {
			return nil
		}
	}
	return fmt.Errorf("%s was written for %v without a pause", d, limit)
}

// Busy waits until the disk has completed this many more requests.
func (d Disk) Busy(more uint64) error {
	began, err := d.Counters()
	if err != nil {
		return err
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		now, err := d.Counters()
		if err != nil || now.Requests >= began.Requests+more {
			return err
		}
	}
	return fmt.Errorf("%s did not complete enough requests within 30 seconds", d)
}

// Fill overwrites a part of a device and bypasses the page cache.
func Fill(path string, offset, length size.Bytes) (err error) {
	const step = size.MiB
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, free, err := directio.Buffer(step)
	if err != nil {
		return err
	}
	defer free()
	for i := range b {
		b[i] = byte(i)
	}
	for done := size.Bytes(0); done < length; done += step {
		if _, err := f.WriteAt(b[:min(step, length-done)], int64(offset+done)); err != nil {
			return err
		}
	}
	return f.Sync()
}
