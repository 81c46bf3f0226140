//go:build kernel

package pool

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// writeFast overwrites the device with fio as fast as possible, and returns the
// rate in bytes per second. It writes every part at most once, and stops after
// limit, if limit is not 0.
func writeFast(t *testing.T, path string, block size.Bytes, direct bool, length size.Bytes, limit time.Duration) float64 {
	args := []string{"--name=w", "--filename=" + path, fmt.Sprintf("--bs=%d", block), fmt.Sprintf("--size=%d", length), "--output-format=json",
		"--ioengine=psync", "--rw=write", "--end_fsync=1", "--thread", "--allow_mounted_write=1", fmt.Sprintf("--runtime=%d", int(limit.Seconds()))}
	if block < 64*size.KiB {
		args = append(args, "--rw=randwrite", "--norandommap=0")
	}
	if direct { // many writers, each in its own part
		const jobs = 16
		args = append(args, "--direct=1", fmt.Sprintf("--numjobs=%d", jobs), fmt.Sprintf("--size=%d", length/jobs), fmt.Sprintf("--offset_increment=%d", length/jobs), "--group_reporting")
	}
	out, err := exec.Command("fio", args...).Output()
	if err != nil {
		t.Errorf("fio: %v\n%s", err, out)
		return 0
	}
	var report struct {
		Jobs []struct {
			Write struct {
				Bytes float64 `json:"bw_bytes"`
			} `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(out, &report); err != nil || len(report.Jobs) != 1 {
		t.Errorf("fio's report: %v\n%s", err, out)
		return 0
	}
	return report.Jobs[0].Write.Bytes
}

func digest(t *testing.T, path string, length size.Bytes) [32]byte {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	ok(t, err)
	defer f.Close()
	h, b := sha256.New(), ioBuffer(t)
	for at := int64(0); at < int64(length); at += int64(len(b)) {
		part := b[:min(int64(len(b)), int64(length)-at)]
		_, err := f.ReadAt(part, at)
		ok(t, err)
		h.Write(part)
	}
	return [32]byte(h.Sum(nil))
}

// TestGrowth_fullSpeed writes at full speed to three idle volumes whose stores have
// the least size, and loses no snapshot.
func TestGrowth_fullSpeed(t *testing.T) {
	const length = 160 * size.MiB
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.Devices, c.FirstStore = testDisks(t)[:2], 0 })
	var vols []Volume
	var paths []string
	for i := range 3 {
		vols = append(vols, must(p.CreateVolume(ctx, VolumeSpec{Name: fmt.Sprintf("v%d", i), Size: length, Mode: Block}))(t))
		paths = append(paths, must(p.Activate(ctx, vols[i].LV))(t))
		writeDevice(t, paths[i], 0, bytes.Repeat([]byte{byte(i + 1)}, 4096))
	}
	for i, c := range []struct {
		chunk, block size.Bytes
		direct       bool
	}{
		{16 * size.KiB, 4 * size.KiB, true}, {4 * size.KiB, 4 * size.KiB, false},
		{16 * size.KiB, 64 * size.KiB, true}, {4 * size.KiB, 64 * size.KiB, false},
		{4 * size.KiB, size.MiB, true}, {16 * size.KiB, size.MiB, false},
	} {
		p.config.Chunk = c.chunk
		p.fastest.Store(0) // the peak of the last round must not help
		var before [3][32]byte
		var first [3]size.Bytes
		for k, v := range vols {
			before[k] = digest(t, paths[k], length)
			s := must(p.CreateSnapshot(ctx, fmt.Sprintf("s%d-%d", i, k), v.LV))(t)
			first[k] = must(p.latest())(t).BytesOf(must(p.latest())(t).VG.LV(s.LV))
		}
		time.Sleep(2 * slowestLook) // idle
		held := p.brakes.read()
		start := time.Now()
		var sum float64
		var mu sync.Mutex
		var writers sync.WaitGroup
		for k := range vols {
			writers.Go(func() {
				fast := writeFast(t, paths[k], c.block, c.direct, length, 5*time.Second)
				mu.Lock()
				sum += fast
				mu.Unlock()
			})
		}
		writers.Wait()
		now, n, d := p.brakes.read(), uint64(0), time.Duration(0)
		if len(now) > 0 {
			n, d = now[0].Count, now[0].Sum
		}
		if len(held) > 0 {
			n, d = n-held[0].Count, d-held[0].Sum
		}
		t.Logf("chunk %v, block %v, direct %v: %.0f MB/s in %v; stores began with %v; writers were held %d times, %v in all; peak %v/s",
			c.chunk, c.block, c.direct, sum/1e6, time.Since(start).Round(time.Millisecond), first, n, d.Round(time.Millisecond), size.Sectors(p.peak()).Bytes())
		for k := range vols {
			s := must(p.Snapshot(ctx, fmt.Sprintf("s%d-%d", i, k)))(t)
			path := p.dm.Node(lvm2.DMName(p.vgName, s.LV, ""))
			if s.Lost || digest(t, path, length) != before[k] {
				t.Errorf("snapshot %s is lost (%v) or has other bytes", s.Name, s.Lost)
			}
			ok(t, p.DeleteSnapshot(ctx, s.LV))
		}
		waitIdle(t, p)
	}
	for _, v := range vols {
		ok(t, p.Deactivate(ctx, v.LV))
	}
}

// TestGrowth_smallVolume writes at full speed to volumes that are hardly larger than a
// first store, while the pool has just enough room, and loses no snapshot.
func TestGrowth_smallVolume(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.FirstStore, c.LayerReserve = 0, 25 })
	for i, c := range []struct{ length, chunk size.Bytes }{
		{48 * size.MiB, 16 * size.KiB}, {112 * size.MiB, 4 * size.KiB}, {160 * size.MiB, 16 * size.KiB}, {160 * size.MiB, 64 * size.KiB},
	} {
		p.config.Chunk = c.chunk
		v := must(p.CreateVolume(ctx, VolumeSpec{Name: fmt.Sprintf("v%d", i), Size: c.length, Mode: Block}))(t)
		path := must(p.Activate(ctx, v.LV))(t)
		full := must(p.CreateVolume(ctx, VolumeSpec{Name: "fill", Size: must(p.Capacity(ctx))(t).MaxVolume, Mode: Block}))(t)
		before := digest(t, path, c.length)
		s := must(p.CreateSnapshot(ctx, fmt.Sprintf("s%d", i), v.LV))(t)
		first := must(p.latest())(t).BytesOf(must(p.latest())(t).VG.LV(s.LV))
		rate := writeFast(t, path, size.MiB, true, c.length, 0)
		t.Logf("volume of %v, chunks of %v: %.0f MB/s, the store began with %v", c.length, c.chunk, rate/1e6, first)
		if s := must(p.Snapshot(ctx, s.LV))(t); s.Lost || digest(t, p.dm.Node(lvm2.DMName(p.vgName, s.LV, "")), c.length) != before {
			t.Errorf("volume of %v, chunks of %v: the snapshot is lost (%v) or has other bytes", c.length, c.chunk, s.Lost)
		}
		ok(t, p.DeleteSnapshot(ctx, s.LV))
		ok(t, p.Deactivate(ctx, v.LV))
		ok(t, p.DeleteVolume(ctx, v.LV))
		ok(t, p.DeleteVolume(ctx, full.LV))
		waitIdle(t, p)
	}
}
