package main

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	creators     = 64 // callers of CreateVolume and DeleteVolume
	snapshooters = 16 // callers of CreateSnapshot and DeleteSnapshot
	stagers      = 16 // callers of NodeStageVolume
	burst        = 4  // calls of each creator in a measurement of a rate
)

// together calls f for 0 to n-1 by the given number of callers, and returns how
// many calls end in a second, and how long each took.
func together(n, callers int, f func(i int) error) (rate float64, took []time.Duration, err error) {
	took = make([]time.Duration, n)
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var all sync.WaitGroup
	began := time.Now()
	for range callers {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && failed.Load() == nil; i = int(next.Add(1)) - 1 {
				start := time.Now()
				if err := f(i); err != nil {
					failed.Store(&err)
				}
				took[i] = time.Since(start)
			}
		})
	}
	all.Wait()
	if e := failed.Load(); e != nil {
		return 0, nil, *e
	}
	return float64(n) / time.Since(began).Seconds(), took, nil
}

// grow brings the pool to the sizes of the step. It skips what an earlier run has
// made on a disk that was kept.
func (s *scale) grow(d *driver, to *step) error {
	volumes, snapshots, err := d.existing()
	if err != nil {
		return err
	}
	var todo []int
	for i := range to.Volumes {
		if volumes[volumeName(i)] == "" {
			todo = append(todo, i)
		}
	}
	ids := make([]string, to.Volumes)
	if len(todo) > 0 {
		rate, _, err := together(len(todo), creators, func(k int) (err error) {
			ids[todo[k]], err = d.create(volumeName(todo[k]), false)
			return err
		})
		if err != nil {
			return err
		}
		to.GrowVolumes = say("CreateVolume while growing", value(rate, "/s"))
	}
	for i := range ids {
		if ids[i] == "" {
			ids[i] = volumes[volumeName(i)]
		}
	}
	type cut struct{ volume, generation int }
	var missing []cut
	for generation := range snapshotsEach {
		for volume := range to.Volumes {
			if !snapshots[snapshotName(volume, generation)] {
				missing = append(missing, cut{volume, generation})
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	rate, _, err := together(len(missing), snapshooters, func(k int) error {
		_, err := d.snapshot(ids[missing[k].volume], snapshotName(missing[k].volume, missing[k].generation))
		return err
	})
	to.GrowSnapshots = say("CreateSnapshot while growing", value(rate, "/s"))
	return err
}

func volumeName(i int) string { return fmt.Sprintf("pvc-%08d", i) }

func snapshotName(volume, generation int) string { return fmt.Sprintf("s-%08d-%d", volume, generation) }

// rates measures how fast volumes and snapshots are made and deleted while the pool has
// the step's number of them. It deletes all that it makes.
func (s *scale) rates(d *driver, at *step) error {
	ids := make([]string, max(s.samples, creators*burst))
	snapshots := make([]string, snapshooters*burst)
	n := creators * burst
	rate, took, err := together(n, creators, func(i int) (err error) {
		ids[i], err = d.create(fmt.Sprintf("more-%d", i), false)
		return err
	})
	if err != nil {
		return err
	}
	at.Create = say("CreateVolume, 64 callers", value(rate, "/s"))
	at.CreateTogether = median(took)
	if rate, _, err = together(len(snapshots), snapshooters, func(i int) (err error) {
		snapshots[i], err = d.snapshot(ids[i], fmt.Sprintf("more-%d", i))
		return err
	}); err != nil {
		return err
	}
	at.Snapshot = say("CreateSnapshot, 16 callers", value(rate, "/s"))
	if rate, _, err = together(len(snapshots), snapshooters, func(i int) error { return d.deleteSnapshot(snapshots[i]) }); err != nil {
		return err
	}
	at.DeleteSnapshot = say("DeleteSnapshot, 16 callers", value(rate, "/s"))
	if rate, _, err = together(n, creators, func(i int) error { return d.delete(ids[i]) }); err != nil {
		return err
	}
	at.Delete = say("DeleteVolume, 64 callers", value(rate, "/s"))
	if _, took, err = together(s.samples, 1, func(i int) (err error) {
		ids[i], err = d.create(fmt.Sprintf("single-%d", i), false)
		return err
	}); err != nil {
		return err
	}
	at.Single, at.SingleP99 = say("CreateVolume, 1 caller: median", median(took)), percentile(took, 99)
	_, _, err = together(s.samples, creators, func(i int) error { return d.delete(ids[i]) })
	return err
}
