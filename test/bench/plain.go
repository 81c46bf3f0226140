package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/contender"
	"github.com/csi-dmsnap/csi-dmsnap/test/bench/figures"
)

const (
	restorePlain = "restore_first_byte/plain"
	stagePlain   = "stage_first_byte/plain"

	byHand    = "by hand: a linear device and mount(8)"
	plainName = "plain"
	plainSize = size.GiB
)

func plainFigures(*bench) []string { return []string{restorePlain, stagePlain} }

// plain measures the time until the first bytes of a file can be read: of a
// restore, from the request on; of a plain volume that the driver stages; and of
// the same plain volume by hand, without the driver.
func (b *bench) plain() error {
	path, err := filled(b.ours, restoreOrigin, plainSize, plainSize/4*3)
	if err != nil {
		return err
	}
	file, err := filled(b.ours, plainName, plainSize, plainSize/4*3)
	if err != nil {
		return err
	}
	h, err := newHand(b.ours, file)
	if err != nil {
		return err
	}
	defer h.client.Close()
	if err := errors.Join(b.ours.Unmount(plainName), b.ours.Snapshot(restoreOrigin, restoreSnapshot, 0)); err != nil {
		return err
	}
	repeat := 15
	if b.quick {
		repeat = 6
	}
	took := samples{}
	for range repeat {
		for _, sample := range []func(samples) error{
			func(took samples) error { return b.restoreSample(path, took) },
			func(took samples) error { return b.stageSample(h.want, took) },
			h.sample,
		} {
			if err := errors.Join(b.ours.Disk().Quiet(), sample(took)); err != nil {
				return err
			}
		}
	}
	note := fmt.Sprintf("an ext4 of %v; until the first bytes of a file are read", plainSize)
	for name, about := range map[string]string{
		restorePlain: "; ours from the request for the volume on",
		stagePlain:   "; ours by NodeStageVolume",
	} {
		if b.wanted(name) {
			b.figures.Add(figures.Series{Name: name, Unit: "ms", Tail: true, Ours: took[name], Theirs: took[byHand], Against: byHand, Note: note + about})
		}
	}
	return errors.Join(b.ours.Delete(plainName), b.ours.DeleteSnapshot(restoreOrigin, restoreSnapshot),
		b.ours.Unmount(restoreOrigin), b.ours.Delete(restoreOrigin), b.ours.Wiped())
}

// restoreSample measures one restore and deletes it.
func (b *bench) restoreSample(path string, took samples) error {
	all := samples{}
	if err := firstByte(b.ours, "restore", path, plainSize, all); err != nil {
		return err
	}
	took.take(restorePlain, all[firstByteName("restore", plainSize)][0])
	return errors.Join(b.ours.Unmount(restored), b.ours.Delete(restored), b.ours.Wiped())
}

// stageSample measures how long the driver takes to stage the plain volume.
func (b *bench) stageSample(want []byte, took samples) error {
	t, err := timed(func() error {
		dir, err := b.ours.Mount(plainName)
		if err != nil {
			return err
		}
		return sameFirstBlock(filepath.Join(dir, dataFile), want)
	})
	if err != nil {
		return err
	}
	took.take(stagePlain, t)
	return b.ours.Unmount(plainName)
}

// hand stages a plain volume without the driver.
type hand struct {
	client *dm.Client
	table  dm.Table // of the volume's device
	dir    string
	want   []byte // the first block of the volume's file
}

// newHand learns about the plain volume while the driver has it mounted.
func newHand(d *contender.Driver, file string) (h hand, err error) {
	h.dir = filepath.Dir(file) + "-by-hand"
	if h.want, err = firstBlock(file); err != nil {
		return h, err
	}
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return h, err
	}
	device, err := mountedDevice(filepath.Dir(file))
	if err != nil {
		return h, err
	}
	if h.client, err = dm.Open(); err != nil {
		return h, err
	}
	h.table, err = h.client.Table(filepath.Base(device))
	return h, err
}

// sample measures how long it takes to make the device and to mount it, and
// removes both.
func (h hand) sample(took samples) error {
	const name = "bench-plain"
	t, err := timed(func() error {
		d, err := h.client.Create(name, "")
		if err != nil {
			return err
		}
		if err := errors.Join(h.client.Load(name, h.table, false), h.client.Resume(name, 0)); err != nil {
			return err
		}
		node, err := h.client.EnsureNode(context.Background(), name, d.Device)
		if err != nil {
			return err
		}
		if out, err := exec.Command("mount", "-t", "ext4", node, h.dir).CombinedOutput(); err != nil {
			return fmt.Errorf("mount: %w\n%s", err, out)
		}
		return sameFirstBlock(filepath.Join(h.dir, dataFile), h.want)
	})
	if err != nil {
		return err
	}
	took.take(byHand, t)
	return errors.Join(unix.Unmount(h.dir, 0), h.client.Remove(name, 0), h.client.RemoveNode(name))
}

func sameFirstBlock(path string, want []byte) error {
	got, err := firstBlock(path)
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%s has other content", path)
	}
	return err
}
