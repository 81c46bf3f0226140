//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// rollBack rolls a volume of an open pool back, like another process, and makes the
// pool see the change.
func rollBack(t *testing.T, p *Pool, lv, snapshot string) RolledBack {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r := must(Rollback(ctx, p.config, Options{}, RollbackSpec{Volume: lv, Snapshot: snapshot}))(t)
	vgck(t, p.vgName)
	ok(t, p.refresh(ctx))
	return r
}

// snapshotsShown returns the names of the volume's snapshots.
func snapshotsShown(t *testing.T, p *Pool, lv string) string {
	t.Helper()
	var names []string
	for _, s := range must(p.Snapshots(context.Background()))(t) {
		if s.Volume == lv {
			names = append(names, s.Name)
		}
	}
	return strings.Join(names, " ")
}

// waitHydrating waits until a window of the volume is open.
func waitHydrating(t *testing.T, p *Pool, lv string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); p.hydrator.window(must(p.latest())(t).VolumeByLV(lv).LV.ID) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s is not being hydrated: %v", lv, p.hydrator.failure(lv))
		}
	}
}

// TestRollback_backAndForth rolls a volume back to a snapshot, to a newer one
// during the hydration, and to the older one again, with a snapshot of the state in
// between. The volume is usable immediately each time, nothing with a name is lost,
// and nothing is left at the end.
func TestRollback_backAndForth(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.HydrationRate = 8 * size.MiB; c.NoFolding = true })
	r := rand.New(rand.NewPCG(3, uint64(time.Now().UnixNano())))
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 32 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	now := make(content, v.Size)
	at := map[string]content{}
	cut := func(name string) {
		t.Helper()
		must(p.CreateSnapshot(ctx, name, v.LV))(t)
		at[name] = bytes.Clone(now)
	}
	var hydrate func()
	back := func(name string) RolledBack {
		t.Helper()
		ok(t, p.Deactivate(ctx, v.LV))
		done := rollBack(t, p, v.LV, name)
		hydrate = p.hydrator.stop(v.LV) // until the test waits for it
		path = must(p.Activate(ctx, v.LV))(t)
		now = append(bytes.Clone(at[name]), make(content, int(done.Volume.Size)-len(at[name]))...)
		now.compare(t, path, "rolled back to "+name)
		now.scribble(t, r, path, 20)
		return done
	}
	now.scribble(t, r, path, 100)
	cut("s1")
	grown := must(p.ExpandVolume(ctx, v.LV, 48*size.MiB, 0))(t)
	now = append(now, make(content, int(grown.Size)-len(now))...)
	now.scribble(t, r, path, 100)
	cut("s2")
	now.scribble(t, r, path, 50)

	done := back("s1")
	if done.Newest.Name != "s2" || done.Former != "former-base" || done.Volume.Size != 48*size.MiB || done.Volume.Name != "base" {
		t.Errorf("%+v", done)
	}
	if got := snapshotsShown(t, p, v.LV); got != "s1 s2" {
		t.Errorf("after the rollback the volume's snapshots are %q", got)
	}
	if s := must(p.CreateSnapshot(ctx, "s2", v.LV))(t); s.LV != "s2" || s.Volume != v.LV {
		t.Errorf("the repeated request returned the snapshot %+v", s)
	}
	f := must(p.CreateVolume(ctx, VolumeSpec{Name: "other", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "s2"}}))(t)
	at["s2"].compare(t, must(p.Activate(ctx, f.LV))(t), "the newer snapshot, restored")
	cut("s3")
	now.scribble(t, r, path, 20)

	// Roll back to the newer snapshot while the volume hydrates and has a snapshot
	// of its own, and then to the older one again.
	hydrate()
	waitHydrating(t, p, v.LV)
	if done := back("s2"); done.Former != "former-base-2" || done.Newest.Name != "s3" {
		t.Errorf("%+v", done)
	}
	hydrate()
	waitHydrating(t, p, v.LV)
	if done := back("s1"); done.Former != "" || done.Newest.Name != "" {
		t.Errorf("%+v", done)
	}
	if got := snapshotsShown(t, p, v.LV); got != "s1 s2 s3" {
		t.Errorf("after three rollbacks the volume's snapshots are %q", got)
	}
	hydrate()
	ok(t, p.Deactivate(ctx, f.LV))
	ok(t, p.DeleteVolume(ctx, f.LV))
	f = must(p.CreateVolume(ctx, VolumeSpec{Name: "third", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "s3"}}))(t)
	at["s3"].compare(t, must(p.Activate(ctx, f.LV))(t), "a snapshot of what was rolled back while it was hydrated")
	for _, lv := range []string{v.LV, f.LV, "former-base-2"} {
		waitHydrated(t, p, lv)
	}
	now.compare(t, path, "hydrated")
	waitIdle(t, p)
	if got := found(t, p.config); len(got) != 0 {
		t.Errorf("check: %v", got)
	}
	ok(t, p.Deactivate(ctx, v.LV))
	now.compare(t, must(p.Activate(ctx, v.LV))(t), "active again")

	all := []func() error{
		func() error { return p.DeleteSnapshot(ctx, "s1") },
		func() error { return p.DeleteSnapshot(ctx, "s2") },
		func() error { return p.DeleteSnapshot(ctx, "s3") },
		func() error { return errors.Join(p.Deactivate(ctx, v.LV), p.DeleteVolume(ctx, v.LV)) },
		func() error { return errors.Join(p.Deactivate(ctx, f.LV), p.DeleteVolume(ctx, f.LV)) },
	}
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, remove := range all {
		ok(t, remove())
	}
	waitIdle(t, p)
	if left := must(p.latest())(t).VG.LVs; len(left) != 0 {
		t.Errorf("left: %d logical volumes, the first is %s %v", len(left), left[0].Name, left[0].Tags)
	}
	if left := settledTo(t, p, 0); len(left) != 0 {
		t.Errorf("left: the devices %v", left)
	}
}

// TestRollback_withoutDriver rolls a volume back while nobody runs the pool, with a
// command that may be killed after its commit. The driver that starts next hydrates
// the volume.
func TestRollback_withoutDriver(t *testing.T) {
	t.Run("done", func(t *testing.T) {
		withoutDriver(t, func(c Config, spec RollbackSpec) {
			ctx := context.Background()
			try := spec
			try.DryRun = true
			must(Rollback(ctx, c, Options{}, try))(t)
			before := viewOf(t, c).VG.Seqno
			done := must(Rollback(ctx, c, Options{}, spec))(t)
			if viewOf(t, c).VG.Seqno != before+1 {
				t.Error("a rollback must be one commit, and a dry run none")
			}
			if done.Volume.Size != 32*size.MiB || !done.Volume.Formatted || done.Volume.Source.Kind != FromNothing {
				t.Errorf("%+v", done)
			}
		})
	})
	t.Run("killed", func(t *testing.T) {
		withoutDriver(t, func(c Config, spec RollbackSpec) {
			ctx := context.Background()
			ok(t, offline(ctx, c, Options{}, func(p *Pool) error {
				return p.underLock(ctx, lvm2.Exclusive, func(v *view) error {
					_, err := p.once(ctx, v, func(e *edit) error {
						_, err := p.rollBack(ctx, e, spec)
						return err
					})
					return err
				})
			}))
		})
	})
}

func withoutDriver(t *testing.T, rollBack func(Config, RollbackSpec)) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 32 * size.MiB, Mode: Filesystem, FSType: "ext4"}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	if out, err := exec.Command("mkfs.ext4", "-q", path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v\n%s", err, out)
	}
	ok(t, p.SetFormatted(ctx, v.LV))
	was := content(readDevice(t, path, v.Size))
	must(p.CreateSnapshot(ctx, "s1", v.LV))(t)
	writeDevice(t, path, 0, bytes.Repeat([]byte{7}, 1<<20))
	reader := must(os.Open(p.dm.Node(p.vgName + "-s1")))(t) // its device is stacked on a device with the volume's name
	ok(t, p.Close())

	rollBack(p.config, RollbackSpec{Volume: "base", Snapshot: "s1"})
	vgck(t, p.vgName)
	if out, err := exec.Command("vgchange", "-ay", p.vgName).CombinedOutput(); err != nil {
		t.Errorf("vgchange: %v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join("/dev/mapper", p.vgName+"-base")); err == nil {
		t.Error("LVM2 activates a volume that reads through a snapshot")
	}
	p = openPool(t, p.config)
	was.compare(t, must(p.Activate(ctx, v.LV))(t), "the volume, rolled back")
	must(p.CreateSnapshot(ctx, "s2", v.LV))(t)
	was.compare(t, p.dm.Node(p.vgName+"-base"), "the volume with a snapshot")
	was.compare(t, p.dm.Node(p.vgName+"-s1"), "the snapshot, read all the while")
	waitHydrated(t, p, v.LV)
	was.compare(t, must(p.Activate(ctx, v.LV))(t), "the volume, hydrated")
	ok(t, reader.Close())
	ok(t, p.DeleteSnapshot(ctx, "s1"))
	ok(t, p.DeleteSnapshot(ctx, "s2"))
	ok(t, p.Deactivate(ctx, v.LV))
	ok(t, p.DeleteVolume(ctx, v.LV))
	waitIdle(t, p)
	if left := settledTo(t, p, 0); len(left) != 0 {
		t.Errorf("left: the devices %v", left)
	}
	ok(t, p.Close())
}

// TestRollback_deviceNotRenamed completes a rollback, and renames its devices,
// beside an unrelated device that cannot be renamed.
func TestRollback_deviceNotRenamed(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 16 * size.MiB, Mode: Block}))(t)
	must(p.Activate(ctx, v.LV))(t)
	must(p.CreateSnapshot(ctx, "s1", v.LV))(t)
	trash, letGo := trashOf(t, p)
	ok(t, p.Close())
	reader := must(os.Open(p.dm.Node(p.vgName + "-s1")))(t) // below it is a device with the volume's name
	client := must(dm.Open())(t)
	defer client.Close()
	base := must(client.Info(p.vgName + "-base-real"))(t)
	stranger := lvm2.DMName(p.vgName, trash, "")
	must(client.Create(stranger, "a-stranger"))(t)
	ok(t, client.Rename(p.vgName+"-gone", p.vgName+"-a", 0)) // comes first in the order of renames
	must(Rollback(ctx, p.config, Options{}, RollbackSpec{Volume: v.LV, Snapshot: "s1"}))(t)
	if now := must(client.InfoByUUID(base.UUID))(t); now.Name != lvm2.DMName(p.vgName, "former-base", layerReal) {
		t.Errorf("the former volume has the device %s", now.Name)
	}
	ok(t, client.Remove(stranger, 0))
	ok(t, reader.Close())
	letGo()
	p = openPool(t, p.config)
	waitIdle(t, p)
}

// TestRollback_refused leaves a volume unchanged if the rollback is refused.
func TestRollback_refused(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.NoFolding = true })
	for _, name := range []string{"base", "other", "plain"} {
		must(p.CreateVolume(ctx, VolumeSpec{Name: name, Size: 16 * size.MiB, Mode: Block}))(t)
	}
	must(p.Activate(ctx, "base"))(t) // the activation wipes it
	ok(t, p.Deactivate(ctx, "base"))
	must(p.CreateSnapshot(ctx, "s1", "base"))(t)
	must(p.CreateSnapshot(ctx, "theirs", "other"))(t)
	must(p.CreateVolume(ctx, VolumeSpec{Name: "readers", Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: "s1"}}))(t)
	if out, err := exec.Command("lvcreate", "-qq", "-y", "-Wn", "-L16m", "-n", "foreign", p.vgName).CombinedOutput(); err != nil {
		t.Fatalf("lvcreate: %v\n%s", err, out)
	}
	ok(t, p.do(ctx, &change{what: "lose a snapshot", edit: func(e *edit) error {
		return e.Lose(e.VolumeByLV("other"), e.SnapshotByLV("theirs"))
	}}))
	path := must(p.Activate(ctx, "base"))(t)
	open := must(os.Open(path))(t)
	refused := func(name, lv, snapshot string, want error) {
		t.Helper()
		was := must(p.latest())(t).VG.Seqno
		spec := RollbackSpec{Volume: lv, Snapshot: snapshot}
		for _, spec.DryRun = range []bool{true, false} {
			if _, err := Rollback(ctx, p.config, Options{}, spec); !errors.Is(err, want) || !strings.Contains(err.Error(), lv) {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
		}
		ok(t, p.refresh(ctx))
		if now := must(p.latest())(t).VG.Seqno; now != was {
			t.Errorf("%s: it was refused, but the metadata has changed", name)
		}
	}
	refused("open", "base", "s1", ErrInUse)
	ok(t, open.Close())
	bound := filepath.Join(t.TempDir(), "device")
	ok(t, os.WriteFile(bound, nil, 0o600))
	ok(t, unix.Mount(path, bound, "", unix.MS_BIND, ""))
	refused("bound for a pod", "base", "s1", ErrInUse)
	ok(t, unix.Unmount(bound, 0))
	if _, err := os.Stat(path); err != nil {
		t.Errorf("a refused rollback removed the device: %v", err)
	}
	refused("no such volume", "none", "s1", ErrNotFound)
	refused("no such snapshot", "base", "none", ErrNotFound)
	refused("a volume is no snapshot", "base", "other", ErrNotFound)
	refused("another volume's", "plain", "s1", ErrPrecondition)
	refused("lost", "other", "theirs", ErrLost)
	refused("for readers", "readers", "ofreaders", ErrPrecondition)
	refused("of LVM2's making", "foreign", "s1", ErrPrecondition)
	room := must(p.Capacity(ctx))(t).MaxVolume
	must(p.CreateVolume(ctx, VolumeSpec{Name: "full", Size: room - 8*size.MiB, Mode: Block}))(t)
	refused("full", "base", "s1", ErrNoSpace)
}

// rollBack rolls a snapshot's volume back to the snapshot, if the snapshot still
// exists.
func (f *forest) rollBack(snapshot string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	of := must(f.p.Snapshot(ctx, snapshot))(f.t).Volume
	i := slices.IndexFunc(f.volumes, func(v *forestVolume) bool { return v.lv == of })
	if i < 0 {
		return "no volume to roll back"
	}
	v := f.volumes[i]
	ok(f.t, f.p.Deactivate(ctx, of))
	_, err := Rollback(ctx, f.p.config, Options{}, RollbackSpec{Volume: of, Snapshot: snapshot})
	did := "rollback"
	if noRoom(err) {
		did = "rollback refused"
	} else {
		ok(f.t, err)
		v.content = append(bytes.Clone(f.snapshots[snapshot]), make(content, len(v.content)-len(f.snapshots[snapshot]))...)
	}
	ok(f.t, f.p.refresh(ctx))
	f.activate(v)
	v.compare(f.t, v.path, did+" of "+of)
	return did
}
