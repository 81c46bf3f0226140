//go:build kernel

package flush

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/directio"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/powercut/history"
)

// dropping is a disk that acknowledges writes and drops them.
type dropping struct{ *memory }

func (dropping) write([]byte, int64, bool) error { return nil }
func (dropping) discard(int64, int64) error      { return nil }

// refusing is a disk on which every write fails.
type refusing struct{ *memory }

func (refusing) write([]byte, int64, bool) error { return unix.EIO }
func (refusing) discard(int64, int64) error      { return unix.EIO }

// corrupting is a disk that changes a byte in every sector that it writes.
type corrupting struct{ *memory }

func (d corrupting) write(p []byte, at int64, fua bool) error {
	for i := size.SectorBytes / 2; i < len(p); i += size.SectorBytes {
		p[i] ^= 0x10
	}
	return d.memory.write(p, at, fua)
}

const (
	lieGroup   = devices + "lie"
	volumeSize = 44 * size.MiB // six volumes need both disks
	callLimit  = 20 * time.Second
)

// liars is a pool on two disks, of which the second lies.
type liars struct {
	t      *testing.T
	rig    *rig
	config pool.Config
	pool   *pool.Pool
	truth  *memory // of the second disk
	model  map[string]uint64
	n      int
}

func newLiars(t *testing.T) *liars {
	l := &liars{t: t, rig: newRig(t, 1, 2), model: map[string]uint64{}}
	random := rand.New(rand.NewPCG(1, 1))
	for i, d := range l.rig.disks {
		m := newMemory(firstContent(random))
		if l.ok(d.replace(m)); i == 1 {
			l.truth = m
		}
		l.config.Devices = append(l.config.Devices, d.path)
	}
	l.config.Name, l.config.VolumeGroup, l.config.Create = "lie", lieGroup, true
	l.config.Chunk, l.config.FirstStore = chunk, 4*size.MiB
	l.open()
	return l
}

func (l *liars) ok(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *liars) open() {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var err error
	l.pool, err = pool.Open(ctx, l.config, pool.Options{})
	l.ok(err)
}

// lie makes the second disk lie.
func (l *liars) lie(how func(*memory) backend) {
	d := l.rig.disks[1]
	d.mu.Lock()
	defer d.mu.Unlock()
	d.in = how(l.truth)
}

// powerCut ends everything, and gives the second disk what it has really written.
func (l *liars) powerCut() {
	l.t.Helper()
	p := l.pool
	closed := make(chan error, 1)
	go func() { closed <- p.Close() }()
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		l.t.Fatal("the pool does not close")
	}
	l.ok(l.rig.takeDown())
	l.ok(l.rig.disks[1].replace(l.truth))
}

// do repeats a call while the pool reports it as pending.
func (l *liars) do(call func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	for {
		err := call(ctx)
		var pending *pool.PendingError
		if !errors.As(err, &pending) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (l *liars) create(spec pool.VolumeSpec) (v pool.Volume, err error) {
	spec.Mode = pool.Block
	err = l.do(func(ctx context.Context) (err error) { v, err = l.pool.CreateVolume(ctx, spec); return err })
	return v, err
}

func (l *liars) activate(lv string) (path string, err error) {
	err = l.do(func(ctx context.Context) (err error) { path, err = l.pool.Activate(ctx, lv); return err })
	return path, err
}

func (l *liars) snapshot(name, lv string) error {
	return l.do(func(ctx context.Context) error { _, err := l.pool.CreateSnapshot(ctx, name, lv); return err })
}

// add makes a volume with bytes, and a snapshot of it that has changed since. It returns
// the first error.
func (l *liars) add(name string) error {
	v, err := l.create(pool.VolumeSpec{Name: name, Size: volumeSize})
	if err != nil {
		return err
	}
	path, err := l.activate(v.LV)
	if err != nil {
		return err
	}
	if err := l.fill(path, name); err != nil {
		return err
	}
	if err := l.snapshot("of-"+name, v.LV); err != nil {
		return err
	}
	l.model["of-"+name] = l.model[name]
	return l.fill(path, name)
}

const filled = 64 // blocks

// fill writes the first blocks of a volume, and flushes them.
func (l *liars) fill(path, name string) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b, free, err := directio.Buffer(filled * history.Block)
	if err != nil {
		return err
	}
	defer free()
	l.n++
	for i := range filled {
		history.Fill(b[i*int(history.Block):(i+1)*int(history.Block)], i, uint64(l.n))
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	l.model[name] = uint64(l.n)
	return nil
}

// read reports whether a volume has the bytes that were written last.
func (l *liars) read(path, name string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	b, free, err := directio.Buffer(filled * history.Block)
	if err != nil {
		return false, err
	}
	defer free()
	if _, err := f.ReadAt(b, 0); err != nil {
		return false, err
	}
	want := make([]byte, history.Block)
	for i := range filled {
		history.Fill(want, i, l.model[name])
		if string(want) != string(b[i*int(history.Block):(i+1)*int(history.Block)]) {
			return false, nil
		}
	}
	return true, nil
}

// says returns the pool's concerns about the second disk, which must be named.
func (l *liars) says() []string {
	var out []string
	for _, c := range l.pool.Concerns(context.Background()) {
		if c.Reason == "MetadataDegraded" && strings.Contains(c.Message, l.rig.disks[1].path) {
			out = append(out, c.Message)
		}
	}
	return out
}

// healed checks that any further change makes both copies of the metadata equal, so that
// lvm2 finds nothing wrong.
func (l *liars) healed() {
	l.t.Helper()
	l.ok(l.add("last"))
	if out, err := exec.Command("vgck", lieGroup).CombinedOutput(); err != nil || len(out) > 0 {
		l.t.Errorf("vgck: %v\n%s", err, out)
	}
	devices, err := lvm2.Scan(context.Background(), l.config.Devices)
	l.ok(err)
	for _, d := range devices {
		if d.Err != nil || d.VG != lieGroup {
			l.t.Errorf("after the next change: %+v", d)
		}
	}
}

// on returns the disks that a logical volume lies on.
func (l *liars) on(lv string) (disks []int) {
	l.t.Helper()
	store, err := lvm2.OpenVG(context.Background(), lvm2.Host{}, lieGroup, l.config.Devices)
	l.ok(err)
	defer store.Close()
	vg, err := store.Read(context.Background())
	l.ok(err)
	for _, s := range vg.LV(lv).Segments {
		for _, stripe := range s.Stripes {
			disks = append(disks, slices.Index(l.config.Devices, vg.PVs[stripe.PV].Device))
		}
	}
	return disks
}

// TestLie_whileInUse: when one of two disks drops, refuses or corrupts what is written to
// it, the other copy of the metadata counts. The pool names the disk. When the disk works
// again, both copies become equal.
func TestLie_whileInUse(t *testing.T) {
	for name, how := range map[string]func(*memory) backend{
		"drops":    func(m *memory) backend { return dropping{m} },
		"refuses":  func(m *memory) backend { return refusing{m} },
		"corrupts": func(m *memory) backend { return corrupting{m} },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLiars(t)
			l.ok(l.add("before"))
			made := []string{"before"}
			l.lie(how)
			said, failed := 0, 0
			for i := range 3 {
				name := fmt.Sprintf("during-%d", i)
				v, err := l.create(pool.VolumeSpec{Name: name, Size: 8 * size.MiB})
				if err == nil {
					made = append(made, name)
					err = l.snapshot("of-"+name, v.LV)
				}
				if t.Logf("%s: %v", name, err); err != nil {
					failed++
				}
				said += len(l.says())
			}
			// A disk that fails is told to the caller, one that lies by the pool.
			if said+failed == 0 {
				t.Error("nobody is told of the disk")
			}
			t.Logf("the pool says: %q", l.says())
			l.lie(func(m *memory) backend { return m })
			if name == "corrupts" { // of the header: only vgck rewrites it
				if out, err := exec.Command("vgck", "--updatemetadata", lieGroup).CombinedOutput(); err != nil {
					t.Errorf("vgck --updatemetadata: %v\n%s", err, out)
				}
			}
			l.ok(l.add("after"))
			l.has(append(made, "after")...)
			l.healed()
			l.powerCut()
		})
	}
}

// has checks that these volumes exist.
func (l *liars) has(names ...string) {
	l.t.Helper()
	volumes, err := l.pool.Volumes(context.Background())
	l.ok(err)
	for _, name := range names {
		if !slices.ContainsFunc(volumes, func(v pool.Volume) bool { return v.Name == name }) {
			l.t.Errorf("volume %s was acknowledged and is gone", name)
		}
	}
}

// TestLie_powerCut: one of two disks acknowledges flushes, and a power cut loses everything
// that was written to it since then. All volumes and snapshots are still listed, every volume
// on the other disk has its bytes, and the pool names the disk.
func TestLie_powerCut(t *testing.T) {
	l := newLiars(t)
	l.ok(l.add("before"))
	l.lie(func(m *memory) backend { return newMemory(m) })
	for i := range 5 {
		l.ok(l.add(fmt.Sprintf("during-%d", i)))
	}
	l.powerCut()
	l.open()
	t.Logf("the pool says: %q", l.says())
	if len(l.says()) == 0 {
		t.Errorf("the pool does not name the disk: %+v", l.pool.Concerns(context.Background()))
	}
	ctx := context.Background()
	volumes, err := l.pool.Volumes(ctx)
	l.ok(err)
	snapshots, err := l.pool.Snapshots(ctx)
	l.ok(err)
	if len(volumes) != 6 || len(snapshots) != 6 {
		t.Errorf("there are %d volumes and %d snapshots, want 6 of each", len(volumes), len(snapshots))
	}
	honest, lying := 0, 0
	for _, v := range volumes {
		is, err := l.shows(v.LV, v.Name)
		where := l.on(v.LV)
		t.Logf("volume %s on disks %v: its bytes are there: %t, %v", v.Name, where, is, err)
		if slices.Contains(where, 1) {
			lying++
			continue
		}
		honest++
		if err != nil || !is { // also if the store of its newest snapshot lies on the other disk and is gone
			t.Errorf("volume %s lies on the honest disk, but its bytes are there: %t, %v", v.Name, is, err)
		}
	}
	if honest == 0 || lying == 0 {
		t.Errorf("%d volumes on the honest disk were read, and %d lie on the other: this test shows nothing", honest, lying)
	}
	for _, s := range snapshots {
		is, err := false, error(nil)
		var v pool.Volume
		if v, err = l.create(pool.VolumeSpec{Name: "restore", Source: pool.Source{Kind: pool.FromSnapshot, LV: s.LV}}); err == nil {
			is, err = l.shows(v.LV, s.Name)
			l.ok(l.do(func(ctx context.Context) error { return l.pool.Deactivate(ctx, v.LV) }))
			l.ok(l.do(func(ctx context.Context) error { return l.pool.DeleteVolume(ctx, v.LV) }))
		}
		t.Logf("snapshot %s on disks %v of a volume on %v: its bytes are there: %t, %v", s.Name, l.on(s.LV), l.on(s.Volume), is, err)
		if !slices.Contains(append(l.on(s.LV), l.on(s.Volume)...), 1) && !is {
			t.Errorf("snapshot %s lies on the honest disk, but its bytes are not there", s.Name)
		}
	}
	l.healed()
	l.powerCut()
}

// shows activates a volume and reports whether it has the bytes that were written last.
func (l *liars) shows(lv, name string) (bool, error) {
	path, err := l.activate(lv)
	if err != nil {
		return false, err
	}
	return l.read(path, name)
}
