//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2/lvm2test"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// twoPools opens pools "from" and "to", each on its own disk. After the test, lvm2
// must find both groups in order, and no loan may be left.
func twoPools(t *testing.T, change func(from, to *Config)) (s *Set, open func() (from, to *Pool)) {
	t.Helper()
	disks, suffix := testDisks(t), strings.ToLower(strings.NewReplacer("/", "", "_", "").Replace(t.Name()))
	from := Config{Name: "from", VolumeGroup: "f" + suffix, Devices: disks[:1], Create: true, FirstStore: 8 * size.MiB}
	to := Config{Name: "to", VolumeGroup: "t" + suffix, Devices: disks[1:2], Create: true}
	if change != nil {
		change(&from, &to)
	}
	s = &Set{}
	open = func() (*Pool, *Pool) {
		t.Helper()
		if s.cancel != nil {
			ok(t, s.Close())
		}
		*s = *must(OpenSet(t.Context(), []Config{from, to}, Options{}))(t)
		return must(s.Pool("from"))(t), must(s.Pool("to"))(t)
	}
	t.Cleanup(func() {
		for _, c := range []Config{from, to} {
			if p, err := s.Pool(c.Name); err == nil && !t.Failed() {
				for _, o := range must(p.latest())(t).Volumes.All() {
					if o.LentTo != "" && !o.Deleted {
						t.Errorf("the loan %s is left", o.Name)
					}
				}
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		for _, c := range []Config{from, to} {
			if !t.Failed() {
				vgck(t, c.VolumeGroup)
				if err := lvm2test.Remove(c.VolumeGroup); err != nil {
					t.Error(err)
				}
			}
			removeDevices(t, c.VolumeGroup)
		}
	})
	return s, open
}

// copied repeats the request until the volume is complete, as a provisioner does.
func copied(t *testing.T, to *Pool, spec VolumeSpec, from *Pool) Volume {
	t.Helper()
	spec.SourcePool = from.name
	for end := time.Now().Add(time.Minute); ; {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		v, err := to.CopyVolume(ctx, spec, from)
		cancel()
		var pending *PendingError
		if err == nil || !errors.As(err, &pending) || time.Now().After(end) {
			return must(v, err)(t)
		}
	}
}

// same fails the test unless the volume holds the given bytes, followed by zeroes.
func same(t *testing.T, p *Pool, v Volume, model content) {
	t.Helper()
	at := must(p.Activate(t.Context(), v.LV))(t)
	for i, b := range readDevice(t, at, v.Size) {
		if want := byte(0); i < len(model) && b != model[i] || i >= len(model) && b != want {
			t.Fatalf("volume %s has %d at byte %d", v.LV, b, i)
		}
	}
	ok(t, p.Deactivate(t.Context(), v.LV))
}

// TestCopyVolume_independentOfSource copies snapshots and volumes into another pool
// of the node, also to larger volumes. The copies are independent of their sources.
func TestCopyVolume_independentOfSource(t *testing.T) {
	_, open := twoPools(t, nil)
	from, to := open()
	ctx, r := t.Context(), rand.New(rand.NewPCG(3, 4))
	v, model := snapped(t, from, r, "base", 16*size.MiB)
	now := append(content{}, model...)
	now.scribble(t, r, must(from.Activate(ctx, v.LV))(t), 50)
	restore := copied(t, to, VolumeSpec{Name: "restore", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "snapbase"}}, from)
	clone := copied(t, to, VolumeSpec{Name: "clone", Mode: Block, Size: 24 * size.MiB, Source: Source{Kind: FromVolume, LV: v.LV}}, from)
	if again := copied(t, to, VolumeSpec{Name: "restore", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "snapbase"}}, from); again != restore {
		t.Errorf("the repeated call returned %+v, not %+v", again, restore)
	}
	if clone.Size != 24*size.MiB || clone.SourcePool != "from" || restore.Size != 16*size.MiB {
		t.Errorf("the clone is %+v, the restored volume %+v", clone, restore)
	}
	ok(t, from.Deactivate(ctx, v.LV))
	ok(t, from.DeleteSnapshot(ctx, "snapbase"))
	ok(t, from.DeleteVolume(ctx, v.LV))
	waitIdle(t, from)
	if left := must(from.latest())(t); left.Volumes.Len()+left.Layers.Len() != 0 {
		t.Errorf("%d volumes and %d layers are left of the source", left.Volumes.Len(), left.Layers.Len())
	}
	same(t, to, restore, model)
	same(t, to, clone, now)
	must(to.CreateSnapshot(ctx, "own", clone.LV))(t) // it is a volume like any other
	ok(t, to.DeleteSnapshot(ctx, "own"))
	if names := must(from.Volumes(ctx))(t); len(names) != 0 {
		t.Errorf("the source's pool lists %v", names)
	}

	small, _ := snapped(t, from, r, "small", 8*size.MiB)
	for what, spec := range map[string]VolumeSpec{
		"read-only":         {Name: "bad", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "snapsmall"}, ReadOnly: true},
		"transient":         {Name: "bad", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "snapsmall"}, Transient: true},
		"of nothing":        {Name: "bad", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "nothing"}},
		"too large":         {Name: "bad", Mode: Block, Size: size.TiB, Source: Source{Kind: FromVolume, LV: small.LV}},
		"too small":         {Name: "bad", Mode: Block, Size: 4 * size.MiB, Source: Source{Kind: FromVolume, LV: small.LV}},
		"of another's name": {Name: "clone", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "snapsmall"}},
	} {
		spec.SourcePool = "from"
		if v, err := to.CopyVolume(ctx, spec, from); err == nil {
			t.Errorf("%s: it was copied to %+v", what, v)
		}
	}
	if left := must(from.latest())(t); left.Layers.Len() != 1 {
		t.Errorf("refused copies have left %d layers", left.Layers.Len()-1)
	}
}

// TestCopyVolume_interrupted continues a copy after restarts, and after the source
// is deleted. Nobody can use the volume before it is complete.
func TestCopyVolume_interrupted(t *testing.T) {
	_, open := twoPools(t, func(_, to *Config) { to.HydrationRate = 4 * size.MiB })
	from, to := open()
	ctx, r := t.Context(), rand.New(rand.NewPCG(5, 6))
	v, model := snapped(t, from, r, "base", 32*size.MiB)
	spec := VolumeSpec{Name: "restore", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "snapbase"}, SourcePool: "from"}
	ask := func(wait time.Duration) error {
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		_, err := to.CopyVolume(ctx, spec, from)
		return err
	}
	var pending *PendingError
	if err := ask(3500 * time.Millisecond); !errors.As(err, &pending) || pending.Done == 0 || pending.Done >= pending.Total {
		t.Fatalf("after a moment: %v, want progress", err)
	}
	if _, err := to.Activate(ctx, "restore"); !errors.Is(err, ErrPrecondition) {
		t.Errorf("using it before it is complete: %v", err)
	}
	if _, err := to.CreateSnapshot(ctx, "early", "restore"); !errors.Is(err, ErrPrecondition) {
		t.Errorf("cutting it before it is complete: %v", err)
	}
	ok(t, from.DeleteSnapshot(ctx, "snapbase"))
	ok(t, from.DeleteVolume(ctx, v.LV))
	for _, group := range []string{from.vgName, to.vgName} {
		vgck(t, group)
	}
	checked := must(Verify(ctx, to.config, Options{}))(t)
	for _, f := range checked.Findings {
		t.Errorf("check finds %+v", f)
	}
	// A killed process leaves the device.
	kept, err := os.Open(to.dm.Node(to.vgName + "-restore-real"))
	ok(t, err)
	from, to = open()
	ok(t, kept.Close())
	for _, f := range must(Verify(ctx, to.config, Options{}))(t).Findings {
		t.Errorf("after a kill check finds %+v", f)
	}
	o := must(to.latest())(t).Named.Get("restore")
	if o == nil || o.Copying == nil || o.Copying.Done == 0 {
		t.Fatalf("after a restart the volume is %+v", o)
	}
	before := o.Copying.Loan
	_ = ask(100 * time.Millisecond)
	if o = must(to.latest())(t).Named.Get("restore"); o.Copying == nil || o.Copying.Loan != before || o.Copying.Done == 0 {
		t.Errorf("the copy began anew: %+v", o.Copying)
	}
	same(t, to, copied(t, to, spec, from), model)
	waitIdle(t, from)
	if left := must(from.latest())(t); left.Volumes.Len()+left.Layers.Len() != 0 {
		t.Errorf("%d volumes and %d layers are left of the source", left.Volumes.Len(), left.Layers.Len())
	}
}

// TestCopyVolume_abandoned deletes an abandoned copy, which leaves nothing in the
// source's pool. A copy that cannot be completed is deleted too.
func TestCopyVolume_abandoned(t *testing.T) {
	s, open := twoPools(t, func(_, to *Config) { to.HydrationRate = size.MiB })
	from, to := open()
	ctx, r := t.Context(), rand.New(rand.NewPCG(7, 8))
	v, _ := snapped(t, from, r, "base", 32*size.MiB)
	var pending *PendingError
	// begin leaves a copy as soon as it runs: on a busy machine that may take several calls.
	begin := func(name string, kind SourceKind, lv string) error {
		for end := time.Now().Add(20 * time.Second); ; {
			limited, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			_, err := to.CopyVolume(limited, VolumeSpec{Name: name, Mode: Block, Source: Source{Kind: kind, LV: lv}, SourcePool: "from"}, from)
			cancel()
			if errors.As(err, &pending) || !errors.Is(err, context.DeadlineExceeded) || time.Now().After(end) {
				return err
			}
		}
	}
	if err := begin("first", FromVolume, v.LV); !errors.As(err, &pending) {
		t.Fatal(err)
	}
	ok(t, s.recallLoans(ctx))
	if left := must(from.latest())(t); left.Named.Get(loanName("to", "first")) == nil {
		t.Fatal("a loan was deleted during the copy")
	}
	ok(t, to.DeleteVolume(ctx, "first"))
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		err := s.recallLoans(ctx)
		left := must(from.latest())(t).Named.Get(loanName("to", "first"))
		if left == nil && err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the loan %v stays: %v", left, err)
		}
	}
	waitIdle(t, to)

	// Delete the loan by force, after a restart: the copy ends with its source.
	if err := begin("second", FromSnapshot, "snapbase"); !errors.As(err, &pending) {
		t.Fatal(err)
	}
	loan := must(from.latest())(t).Named.Get(loanName("to", "second")).LV
	from, to = open()
	ok(t, from.DeleteVolume(ctx, loan.Name))
	ok(t, from.DeleteSnapshot(ctx, "snapbase"))
	ok(t, from.DeleteVolume(ctx, v.LV))
	if err := begin("second", FromSnapshot, "snapbase"); !errors.Is(err, ErrNotFound) {
		t.Errorf("copying deleted content: %v", err)
	}
	if left := must(to.latest())(t); left.Named.Get("second") != nil {
		t.Error("a volume that can never be complete is left")
	}
}

// TestCopyVolume_otherExtentSize copies between groups with different extent sizes,
// on used disks. The copy is complete, and has no byte of a former owner.
func TestCopyVolume_otherExtentSize(t *testing.T) {
	for _, extents := range [][2]string{{"64k", "4m"}, {"4m", "64k"}} {
		t.Run(extents[0]+" to "+extents[1], func(t *testing.T) {
			_, open := twoPools(t, func(from, to *Config) {
				for i, c := range []*Config{from, to} {
					garbage := bytes.Repeat([]byte("former owner "), int(4*size.MiB)/13)
					for at := int64(0); at < int64(64*size.MiB); at += int64(4 * size.MiB) {
						writeDevice(t, c.Devices[0], at, garbage[:len(garbage)/4096*4096])
					}
					lvm(t, "vgcreate", "-qq", "-s", extents[i], c.VolumeGroup, c.Devices[0])
					c.Create = false
				}
			})
			from, to := open()
			ctx, r := t.Context(), rand.New(rand.NewPCG(9, 10))
			_, model := snapped(t, from, r, "base", 5*size.MiB+64*size.KiB)
			model = append(model, make(content, 8*size.MiB)...)
			same(t, to, copied(t, to, VolumeSpec{Name: "restore", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "snapbase"}}, from), model)
			same(t, to, copied(t, to, VolumeSpec{Name: "larger", Mode: Block, Size: 11 * size.MiB, Source: Source{Kind: FromSnapshot, LV: "snapbase"}}, from), model)

			// Nobody has used this volume, so it has no file system.
			must(from.CreateVolume(ctx, VolumeSpec{Name: "raw", Mode: Block, Size: 3 * size.MiB}))(t)
			same(t, to, copied(t, to, VolumeSpec{Name: "unused", Mode: Block, Source: Source{Kind: FromVolume, LV: "raw"}}, from), make(content, 3*size.MiB))
			must(from.CreateVolume(ctx, VolumeSpec{Name: "fs", Mode: Filesystem, FSType: "ext4", Size: 9 * size.MiB}))(t)
			v := copied(t, to, VolumeSpec{Name: "unformatted", Mode: Filesystem, FSType: "ext4", Source: Source{Kind: FromVolume, LV: "fs"}}, from)
			if v.Formatted {
				t.Error("the copy of a volume without a file system counts as formatted")
			}
			at := must(to.Activate(ctx, v.LV))(t)
			if garbage := firstByte(t, at, 0, size.MiB); garbage >= 0 {
				t.Errorf("a volume to be formatted has a former owner's bytes at %d", garbage)
			}
			ok(t, to.Deactivate(ctx, v.LV))
		})
	}
}

// TestCopyVolume_badSource reports that the source cannot be read, and continues
// the copy once it can.
func TestCopyVolume_badSource(t *testing.T) {
	disk := testDisks(t)[0]
	reload := func(table string) { // the whole disk, with a hole that cannot be read
		t.Helper()
		for _, args := range [][]string{{"dmsetup", "suspend", "--noflush", "copysource"}, {"dmsetup", "load", "copysource", "--table", table}, {"dmsetup", "resume", "copysource"}} {
			command(t, args[0], args[1:]...)
		}
	}
	const offset = 2048 // so that lvm2 does not find the group on the disk itself
	n := must(strconv.ParseUint(command(t, "blockdev", "--getsz", disk), 10, 64))(t) - offset
	good := fmt.Sprintf("0 %d linear %s %d", n, disk, offset)
	command(t, "dmsetup", "create", "copysource", "--table", good)
	t.Cleanup(func() { command(t, "dmsetup", "remove", "--retry", "copysource") })
	_, open := twoPools(t, func(from, _ *Config) { from.Devices = []string{"/dev/mapper/copysource"} })
	from, to := open()
	_, model := snapped(t, from, rand.New(rand.NewPCG(11, 12)), "base", 16*size.MiB)
	v := must(from.latest())(t).Named.Get("base")
	hole := uint64(size.Sectors(v.LV.Segments[0].Stripes[0].Start)*must(from.latest())(t).VG.ExtentSize + must(from.latest())(t).VG.PVs[0].PEStart + (9 * size.MiB).Sectors())
	reload(fmt.Sprintf("0 %d linear %s %d\n%[1]d 8 error\n%[4]d %[5]d linear %[2]s %[6]d", hole, disk, offset, hole+8, n-hole-8, offset+hole+8))
	_, err := to.CopyVolume(t.Context(), VolumeSpec{Name: "restore", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "snapbase"}, SourcePool: "from"}, from)
	if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "reading") {
		t.Fatalf("copying an unreadable source: %v", err)
	}
	if o := must(to.latest())(t).Named.Get("restore"); o == nil || o.Copying == nil {
		t.Fatalf("the volume is %+v", o)
	}
	reload(good)
	same(t, to, copied(t, to, VolumeSpec{Name: "restore", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "snapbase"}}, from), model)
}

// TestCopyVolume_otherBlockSize refuses to copy a file system from a disk with
// blocks of 512 bytes to disks with larger blocks. The reverse is allowed.
func TestCopyVolume_otherBlockSize(t *testing.T) {
	_, open := twoPools(t, func(_, to *Config) { to.Devices = []string{diskOf4096(t, "128M")} })
	small, large := open()
	r := rand.New(rand.NewPCG(13, 14))
	snapped(t, small, r, "small", 8*size.MiB)
	_, err := large.CopyVolume(t.Context(), VolumeSpec{Name: "bad", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "snapsmall"}, SourcePool: "from"}, small)
	if !errors.Is(err, ErrPrecondition) {
		t.Errorf("to larger blocks: %v", err)
	}
	_, model := snapped(t, large, r, "large", 8*size.MiB)
	same(t, small, copied(t, small, VolumeSpec{Name: "good", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "snaplarge"}}, large), model)
}
