//go:build kernel

package pool

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// mountedVolume makes a volume with a file system and mounts it.
func mountedVolume(t *testing.T, p *Pool, fs string, length size.Bytes) (v Volume, path, dir string) {
	t.Helper()
	ctx := context.Background()
	v = must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: length, Mode: Filesystem, FSType: fs}))(t)
	path = must(p.Activate(ctx, v.LV))(t)
	lvm(t, append(map[string][]string{"ext4": {"mkfs.ext4", "-q", "-F"}, "xfs": {"mkfs.xfs", "-q", "-f"}, "btrfs": {"mkfs.btrfs", "-q", "-f"}}[fs], path)...)
	ok(t, p.SetFormatted(ctx, v.LV))
	dir = t.TempDir()
	ok(t, unix.Mount(path, dir, fs, 0, ""))
	t.Cleanup(func() {
		if t.Failed() {
			setFrozen(dir, false)
			unix.Unmount(dir, unix.MNT_DETACH)
			return
		}
		unmount(t, dir)
		ok(t, p.Deactivate(ctx, v.LV))
	})
	return v, path, dir
}

// unmount unmounts a directory, and retries for 5 s while it is busy.
func unmount(t *testing.T, dir string) {
	t.Helper()
	var err error
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = unix.Unmount(dir, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	ok(t, err)
}

// setFrozen freezes or thaws the file system mounted at dir, as fsfreeze does.
func setFrozen(dir string, freeze bool) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetInt(int(f.Fd()), map[bool]uint{true: fsFreeze, false: fsThaw}[freeze], 0)
}

// counter writes ascending numbers to a file, and syncs each before the next.
type counter struct {
	acknowledged atomic.Uint64
	stop         chan struct{}
	ended        chan error
}

func countIn(t *testing.T, file string) *counter {
	c := &counter{stop: make(chan struct{}), ended: make(chan error, 1)}
	f := must(os.Create(file))(t)
	go func() {
		defer f.Close()
		var b [8]byte
		for n := uint64(1); ; n++ {
			select {
			case <-c.stop:
				c.ended <- nil
				return
			default:
			}
			binary.LittleEndian.PutUint64(b[:], n)
			if _, err := f.WriteAt(b[:], 0); err != nil {
				c.ended <- err
				return
			}
			if err := f.Sync(); err != nil {
				c.ended <- err
				return
			}
			c.acknowledged.Store(n)
		}
	}()
	return c
}

// waitFor waits until the number n is on the disk.
func (c *counter) waitFor(t *testing.T, n uint64) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); c.acknowledged.Load() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the writer is only at %d, want %d", c.acknowledged.Load(), n)
		}
	}
}

// counted mounts a copy read-only, with options that skip the recovery, and returns the
// number in its file.
func counted(t *testing.T, p *Pool, v Volume, options string) uint64 {
	t.Helper()
	path := must(p.Activate(context.Background(), v.LV))(t)
	dir := t.TempDir()
	ok(t, unix.Mount(path, dir, v.FSType, unix.MS_RDONLY, options))
	b := must(os.ReadFile(filepath.Join(dir, "count")))(t)
	unmount(t, dir)
	ok(t, p.Deactivate(context.Background(), v.LV))
	if len(b) != 8 {
		return 0
	}
	return binary.LittleEndian.Uint64(b)
}

// TestFreeze_frozenByHook: a file system that a hook has frozen (fsfreeze, as for
// backups) is cut in the frozen state, whatever kind of cut it is, and stays frozen.
func TestFreeze_frozenByHook(t *testing.T) {
	for fs, length := range map[string]size.Bytes{"ext4": 64 * size.MiB, "xfs": 320 * size.MiB, "btrfs": 128 * size.MiB} {
		t.Run(fs, func(t *testing.T) {
			ctx := context.Background()
			p := testPool(t, nil)
			v, _, dir := mountedVolume(t, p, fs, length)
			writer := countIn(t, filepath.Join(dir, "count"))
			options := map[string]string{"ext4": "noload", "xfs": "norecovery,nouuid", "btrfs": "rescue=nologreplay"}[fs]
			clone := VolumeSpec{Mode: Filesystem, FSType: fs, Source: Source{Kind: FromVolume, LV: v.LV}}
			for _, kind := range []string{"snapshot", "clone", "reader", "transient"} {
				writer.waitFor(t, writer.acknowledged.Load()+5)
				ok(t, setFrozen(dir, true))
				froze, at := time.Now(), writer.acknowledged.Load()
				spec := clone
				spec.Name, spec.ReadOnly, spec.Transient = kind, kind == "reader", kind == "transient"
				if kind == "snapshot" {
					s := must(p.CreateSnapshot(ctx, "s", v.LV))(t)
					if s.Created.Before(froze) || s.Created.After(time.Now()) {
						t.Errorf("the snapshot's time is %v, but the file system was frozen from %v to %v", s.Created, froze, time.Now())
					}
					spec.Source = Source{Kind: FromSnapshot, LV: s.LV}
				}
				c, err := p.CreateVolume(ctx, spec)
				if now := writer.acknowledged.Load(); now > at+1 { // one write may have ended just before the freeze
					t.Errorf("%s: the writer went from %d to %d during the freeze", kind, at, now)
				}
				ok(t, setFrozen(dir, false)) // EINVAL if it is no longer frozen
				ok(t, err)
				writer.waitFor(t, at+5)
				if fs == "btrfs" && kind != "snapshot" {
					continue // btrfs cannot mount a second file system with the same identity
				}
				if fs == "btrfs" {
					lvm(t, "btrfs", "check", "--readonly", must(p.Activate(ctx, c.LV))(t))
					ok(t, p.Deactivate(ctx, c.LV))
				} else if got := counted(t, p, c, options); got < at || got > at+1 {
					t.Errorf("%s: the copy has %d, but the writer was at %d when it was frozen", kind, got, at)
				}
				ok(t, p.DeleteVolume(ctx, c.LV))
			}
			close(writer.stop)
			ok(t, <-writer.ended)
		})
	}
}

// TestFreeze_hookEndedBefore: a hook's freeze that ended before the volume was
// suspended does not count, and the file system does not stay frozen.
func TestFreeze_hookEndedBefore(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v, _, dir := mountedVolume(t, p, "ext4", 64*size.MiB)
	file := filepath.Join(dir, "file")
	err := p.onVolume(ctx, v.LV, func(ctx context.Context) error {
		w := must(p.latest())(t)
		o := w.VolumeByLV(v.LV)
		for _, frozenNow := range []bool{false, true, false} {
			ok(t, os.WriteFile(file, bytes.Repeat([]byte("x"), 1<<20), 0o600)) // so that the freeze has data to write back
			if frozenNow {
				ok(t, setFrozen(dir, true))
			}
			f := &frozen{pool: p, volume: o, device: w.topDevice(o.LV)}
			held, err := f.hooked(ctx, dir)
			if err != nil || held != frozenNow {
				t.Errorf("frozen by a hook: %v; hooked returned %v, %v", frozenNow, held, err)
			}
			if info := must(p.find(f.device))(t); info.Suspended != frozenNow {
				t.Errorf("frozen by a hook: %v; the device is %+v", frozenNow, info)
			}
			ok(t, p.dm.Resume(f.device.name, f.device.udev))
			if frozenNow {
				ok(t, setFrozen(dir, false))
			}
		}
		return nil
	})
	ok(t, err)
	ok(t, os.WriteFile(file, []byte("y"), 0o600))
	if err := setFrozen(dir, false); !errors.Is(err, unix.EINVAL) {
		t.Errorf("the file system was left frozen: %v", err)
	}
	s := must(p.CreateSnapshot(ctx, "s", v.LV))(t)
	c := must(p.CreateVolume(ctx, VolumeSpec{Name: "c", Mode: Filesystem, FSType: "ext4", ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: s.LV}}))(t)
	at := t.TempDir()
	ok(t, unix.Mount(must(p.Activate(ctx, c.LV))(t), at, "ext4", unix.MS_RDONLY, "noload"))
	if b := must(os.ReadFile(filepath.Join(at, "file")))(t); string(b) != "y" {
		t.Errorf("the file in the snapshot has %q, want y", b)
	}
	unmount(t, at)
	ok(t, p.Deactivate(ctx, c.LV))
}

// TestFreeze_hooksBetweenCuts: hooks that freeze and thaw while cuts are made spoil no
// cut, and no cut undoes their freezes.
func TestFreeze_hooksBetweenCuts(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.FirstStore = 4 * size.MiB })
	v, _, dir := mountedVolume(t, p, "ext4", 32*size.MiB)
	stop, hooks := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				hooks <- nil
				return
			case <-time.After(time.Duration(n%7) * time.Millisecond):
			}
			if err := os.WriteFile(filepath.Join(dir, "file"), bytes.Repeat([]byte{byte(n)}, 65536), 0o600); err != nil {
				hooks <- err
				return
			}
			// EBUSY: a cut has the file system frozen at this moment.
			if err := setFrozen(dir, true); errors.Is(err, unix.EBUSY) {
				continue
			} else if err != nil {
				hooks <- err
				return
			}
			time.Sleep(time.Duration(n%5) * time.Millisecond)
			if err := setFrozen(dir, false); err != nil {
				hooks <- fmt.Errorf("thawing what the hook froze: %w", err)
				return
			}
		}
	}()
	for i := range 12 {
		s, err := p.CreateSnapshot(ctx, fmt.Sprintf("s%d", i), v.LV)
		if errors.Is(err, ErrFreeze) {
			continue
		}
		ok(t, err)
		c := must(p.CreateVolume(ctx, VolumeSpec{Name: "c", Mode: Filesystem, FSType: "ext4", ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: s.LV}}))(t)
		lvm(t, "e2fsck", "-f", "-n", must(p.Activate(ctx, c.LV))(t))
		ok(t, p.Deactivate(ctx, c.LV))
		ok(t, p.DeleteVolume(ctx, c.LV))
		ok(t, p.DeleteSnapshot(ctx, s.LV))
	}
	close(stop)
	ok(t, <-hooks)
	ok(t, os.WriteFile(filepath.Join(dir, "file"), []byte("y"), 0o600))
}

// cutNamed cuts a snapshot without the sync before the cut, as if a writer had written
// much after the sync.
func cutNamed(ctx context.Context, p *Pool, lv, name string) error {
	_, err := run(ctx, &p.group, []string{nameKey(name), lvKey(lv)}, func(ctx context.Context) (none struct{}, err error) {
		return none, p.take(ctx, "create snapshot "+name, lv, name, func(t *edit, c catalog.CutLayer) error { return t.Record(c, name) })
	})
	return err
}

// TestFreeze_slowFilesystem: a file system that freezes slowly delays only its own
// volume, and not lvm2. The cut fails, changes nothing, and can be repeated.
func TestFreeze_slowFilesystem(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.FirstStore = 64 * size.MiB })
	v, _, dir := mountedVolume(t, p, "ext4", 128*size.MiB)
	ok(t, os.WriteFile(filepath.Join(dir, "x"), bytes.Repeat([]byte("x"), 8<<20), 0o600))
	unix.Sync()
	must(p.CreateSnapshot(ctx, "s1", v.LV))(t)
	other := must(p.CreateVolume(ctx, VolumeSpec{Name: "other", Size: 16 * size.MiB, Mode: Block}))(t)
	must(p.Activate(ctx, other.LV))(t)
	cow := p.vgName + "-s1-cow"
	inTime := late(t, p, v.LV) // so that the monitor leaves the store alone
	defer inTime()
	ok(t, p.dm.Suspend(ctx, cow, dm.SuspendOptions{SkipLockFS: true})) // so that write-back takes long
	resumed := false
	resume := func() {
		if !resumed {
			resumed = true
			ok(t, p.dm.Resume(cow, 0))
		}
	}
	defer resume()
	// The freeze must write this back, but the store accepts no copies.
	f := must(os.OpenFile(filepath.Join(dir, "x"), os.O_WRONLY, 0))(t)
	must(f.Write(bytes.Repeat([]byte("y"), 8<<20)))(t)
	wrote := make(chan error, 1)
	go func() { wrote <- errors.Join(f.Sync(), f.Close()) }()
	time.Sleep(300 * time.Millisecond)
	before := must(p.latest())(t)
	history := len(before.VolumeByLV(v.LV).Layers)
	cut := make(chan error, 1)
	began := time.Now()
	go func() { cut <- cutNamed(ctx, p, v.LV, "s2") }()
	time.Sleep(200 * time.Millisecond)
	for i := range 8 {
		limited, cancel := context.WithTimeout(ctx, 4*time.Second)
		s, err := p.CreateSnapshot(limited, fmt.Sprintf("o%d", i), other.LV)
		if err == nil {
			err = p.DeleteSnapshot(limited, s.LV)
		}
		if err != nil {
			t.Errorf("%v after the freeze began, a cut of another volume failed: %v", time.Since(began), err)
		}
		cancel()
		for _, command := range []string{"lvs", "vgs"} {
			if out, err := exec.Command("timeout", "4", command, p.vgName).CombinedOutput(); err != nil {
				t.Errorf("%v after the freeze began, %s failed: %v\n%s", time.Since(began), command, err, out)
			}
		}
		if time.Since(began) > freezeLimit*3/4 {
			break
		}
		time.Sleep(500 * time.Millisecond)
	}
	if err := <-cut; !errors.Is(err, ErrFreeze) {
		t.Errorf("after %v the cut returned %v, want ErrFreeze", time.Since(began), err)
	}
	if _, err := p.SnapshotNamed(ctx, "s2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the failed cut left a snapshot: %v", err)
	}
	if now := len(must(p.latest())(t).VolumeByLV(v.LV).Layers); now != history {
		t.Errorf("after the failed cut there are %d layers, want %d", now, history)
	}
	// An operation on the volume waits until the kernel answers or its context ends.
	limited, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	if err := cutNamed(limited, p, v.LV, "s2"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a cut while the volume is being suspended returned %v", err)
	}
	cancel()
	resume()
	ok(t, <-wrote)
	s := must(p.CreateSnapshot(ctx, "s2", v.LV))(t)
	if s.Created.Before(began.Add(freezeLimit)) {
		t.Errorf("the snapshot's time is %v, but it was cut more than %v after %v", s.Created, freezeLimit, began)
	}
}
