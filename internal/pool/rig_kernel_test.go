//go:build kernel

package pool

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/internal/directio"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2/lvm2test"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// testDisks returns the scratch disks. It fills them with zeroes.
func testDisks(t *testing.T) []string {
	t.Helper()
	disks := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")
	if disks[0] == "" {
		t.Fatal("DMSNAP_TEST_DISKS names no scratch disk: run these tests by hack/testkernel")
	}
	for _, d := range disks {
		f, err := os.OpenFile(d, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		end, err := f.Seek(0, 2)
		if err == nil {
			err = zeroRange(f, 0, size.Bytes(end))
		}
		f.Close()
		if err != nil {
			t.Fatalf("blanking %s: %v", d, err)
		}
	}
	return disks
}

// testPool opens a new pool on the first scratch disk. At the test's end, vgck must find
// nothing wrong with the group, which is then removed.
func testPool(t *testing.T, change func(*Config)) *Pool {
	t.Helper()
	c := Config{Name: "pool", VolumeGroup: "vg" + strings.ToLower(strings.NewReplacer("/", "", "_", "").Replace(t.Name())), Devices: testDisks(t)[:1], Create: true, FirstStore: 8 * size.MiB}
	if change != nil {
		change(&c)
	}
	p := openPool(t, c)
	t.Cleanup(func() {
		if t.Failed() {
			p.Close()
			removeDevices(t, c.VolumeGroup)
			return // the next test blanks the disks
		}
		if v := p.current.Load(); p.ctx.Err() == nil {
			for _, o := range v.Volumes.All() { // LVM2 does not know the devices of a fork
				waitHydrated(t, p, o.LV.Name)
			}
		}
		if err := p.Close(); err != nil { // otherwise the pool would still work on the group
			t.Errorf("closing the pool: %v", err)
		}
		vgck(t, c.VolumeGroup)
		if err := lvm2test.Remove(c.VolumeGroup); err != nil {
			t.Error(err)
			removeDevices(t, c.VolumeGroup)
		}
	})
	return p
}

// removeDevices removes the devices that a failed test has left of a group, because the
// next tests need the disks.
func removeDevices(t *testing.T, group string) {
	client := must(dm.Open())(t)
	defer client.Close()
	for range 8 { // devices are stacked: each pass removes the top ones
		for _, e := range must(client.List())(t) {
			if !strings.HasPrefix(e.Name, group+"-") {
				continue
			}
			client.Resume(e.Name, 0)
			if client.Remove(e.Name, 0) == nil {
				client.RemoveNode(e.Name)
			}
		}
	}
}

func openPool(t *testing.T, c Config) *Pool {
	t.Helper()
	if c.cleanAfter == 0 {
		c.cleanAfter = time.Hour // so that the cleaner does not use the disks during tests of other parts
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	p, err := Open(ctx, c, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// LVM2 does not know the devices of a fork.
		for end := time.Now().Add(20 * time.Second); !t.Failed() && p.ctx.Err() == nil && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if forks := slices.ContainsFunc(slices.Collect(p.current.Load().Volumes.Values()), (*catalog.Volume).Forked); !forks {
				p.refresh(context.Background()) // its devices match afterwards
				break
			}
		}
		if err := p.Close(); err != nil {
			t.Errorf("closing the pool: %v", err)
		}
	})
	return p
}

// vgck fails the test if LVM2 finds anything wrong with the group.
func vgck(t *testing.T, vg string) {
	t.Helper()
	if out, err := exec.Command("vgck", vg).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("vgck %s: %v\n%s", vg, err, out)
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// directBuffer returns n bytes that O_DIRECT accepts, for the life of the test.
func directBuffer(t *testing.T, n size.Bytes) []byte {
	t.Helper()
	b, free, err := directio.Buffer(n)
	ok(t, err)
	t.Cleanup(free)
	return b
}

var ioBuffers = map[*testing.T][]byte{}

// ioBuffer returns the buffer for all transfers of a test.
func ioBuffer(t *testing.T) []byte {
	b := ioBuffers[t]
	if b == nil {
		b = directBuffer(t, 4*size.MiB)
		ioBuffers[t] = b
		t.Cleanup(func() { delete(ioBuffers, t) })
	}
	return b
}

func readDevice(t *testing.T, path string, length size.Bytes) []byte {
	t.Helper()
	return readPart(t, path, 0, length)
}

func readPart(t *testing.T, path string, from, length size.Bytes) []byte {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	ok(t, err)
	defer f.Close()
	b, out := ioBuffer(t), make([]byte, 0, length)
	for len(out) < int(length) {
		n, err := f.ReadAt(b[:min(len(b), int(length)-len(out))], int64(from)+int64(len(out)))
		ok(t, err)
		out = append(out, b[:n]...)
	}
	return out
}

// firstByte returns the offset of the first byte between from and to that is not zero;
// -1 if there is none.
func firstByte(t *testing.T, path string, from, to size.Bytes) int64 {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	ok(t, err)
	defer f.Close()
	b := ioBuffer(t)
	zeroes := make([]byte, len(b))
	for at := int64(from); at < int64(to); {
		part := b[:min(int64(len(b)), int64(to)-at)]
		_, err := f.ReadAt(part, at)
		ok(t, err)
		if !bytes.Equal(part, zeroes[:len(part)]) {
			return at + int64(bytes.IndexFunc(part, func(r rune) bool { return r != 0 }))
		}
		at += int64(len(part))
	}
	return -1
}

func writeDevice(t *testing.T, path string, off int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	ok(t, err)
	defer f.Close()
	b := ioBuffer(t)
	_, err = f.WriteAt(b[:copy(b, data)], off)
	ok(t, err)
}

// waitIdle waits until all trash is wiped and free again.
func waitIdle(t *testing.T, p *Pool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		v := must(p.latest())(t)
		if len(v.Trash) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d deleted logical volumes are still not wiped", len(v.Trash))
		}
	}
}

// settledTo returns devicesOf as soon as there are n devices, or after ten seconds.
// Background work that ends removes its devices a moment later.
func settledTo(t *testing.T, p *Pool, n int) map[string]string {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if all := devicesOf(t, p); len(all) == n || time.Now().After(end) {
			return all
		}
	}
}

// devicesOf lists the group's devices with their tables, in dmsetup's form. It waits up
// to ten seconds for devices that background work needs only for a moment, to wipe trash
// or to read a frozen store.
func devicesOf(t *testing.T, p *Pool) map[string]string {
	t.Helper()
	prefix := strings.ReplaceAll(p.vgName, "-", "--") + "-"
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		out, passing := map[string]string{}, false
		for _, e := range must(p.dm.List())(t) {
			name, ours := strings.CutPrefix(e.Name, prefix)
			if !ours {
				continue
			}
			table, err := p.dm.Table(e.Name)
			passing = passing || err != nil || strings.HasPrefix(name, "dmsnap--trash--")
			out[name] = strings.TrimSpace(table.String())
		}
		for name := range out {
			if snapshot, store := strings.CutSuffix(name, "-cow"); store {
				_, has := out[snapshot]
				passing = passing || !has
			}
		}
		if !passing || time.Now().After(end) {
			return out
		}
	}
}
