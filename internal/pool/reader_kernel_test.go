//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// quiet runs a command of LVM2, which must succeed without warnings. It accepts the
// warnings that no backup was made, and that the table of an active reader or of an
// older snapshot differs from LVM2's (docs/limitations.md).
func quiet(t *testing.T, command string) string {
	t.Helper()
	var said bytes.Buffer
	args := strings.Fields(command)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%s: %v\n%s", command, err, said.String())
	}
	for line := range strings.Lines(said.String()) {
		known := args[0] == "lvs" && (strings.Contains(line, "Cannot find matching striped segment") || strings.Contains(line, "does not match expected type error"))
		if !known && !strings.Contains(line, "NOT backed up") {
			t.Errorf("%s warns: %s", command, line)
		}
	}
	return string(out)
}

// full allocates every free extent of the pool.
func full(t *testing.T, p *Pool) {
	t.Helper()
	waitIdle(t, p)
	if out, err := exec.Command("lvcreate", "-q", "-an", "-Wn", "-Zn", "-l", "100%FREE", "-n", "rest", p.vgName).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ok(t, p.refresh(context.Background()))
	if n := must(p.latest())(t).Free.Size(); n != 0 {
		t.Fatalf("%d extents are still free", n)
	}
}

func noFindings(t *testing.T, p *Pool) {
	t.Helper()
	v := must(Verify(context.Background(), p.config, Options{}))(t)
	for _, f := range v.Findings {
		t.Errorf("check: %s %s: %s", f.Reason, f.Where, f.What)
	}
	if len(v.Findings) == 0 {
		nothingPlanned(t, p)
	}
}

// nothingPlanned fails the test if the devices differ from the wanted devices.
func nothingPlanned(t *testing.T, p *Pool) {
	t.Helper()
	var plan []PlanStep
	for range 50 { // a running plan may be between two steps
		plan = nil
		for _, v := range must(Inspect(context.Background(), p.config, Options{}))(t).Volumes {
			plan = append(plan, v.Plan...)
		}
		if len(plan) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("devices differ from the wanted ones; the plan is %+v", plan)
}

// TestReader_severalInFullPool: several read-only volumes show their snapshots in a
// pool without a free extent, while the source and other snapshots change and are
// deleted. LVM2 leaves them alone.
func TestReader_severalInFullPool(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	r := rand.New(rand.NewPCG(3, 4))
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 12 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	base := make(content, v.Size)
	cuts := map[string]content{}
	for _, name := range []string{"s1", "s2", "s3"} {
		base.scribble(t, r, path, 100)
		must(p.CreateSnapshot(ctx, name, v.LV))(t)
		cuts[name] = bytes.Clone(base)
	}
	clone := must(p.CreateVolume(ctx, VolumeSpec{Name: "r-clone", Mode: Block, ReadOnly: true, Source: Source{Kind: FromVolume, LV: v.LV}}))(t)
	want := map[string]content{clone.LV: bytes.Clone(base)}
	base.scribble(t, r, path, 20)
	full(t, p)
	for _, name := range []string{"s1", "s2", "s2", "s3"} {
		spec := VolumeSpec{Name: fmt.Sprint("r-", name, "-", len(want)), Size: v.Size, Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: name}}
		made := must(p.CreateVolume(ctx, spec))(t)
		if again := must(p.CreateVolume(ctx, spec))(t); again != made {
			t.Errorf("a repeated request returned %+v, the first %+v", again, made)
		}
		if made.Size != v.Size || !made.ReadOnly || !made.Copied {
			t.Errorf("the new reader is %+v", made)
		}
		want[made.LV] = cuts[name]
	}
	paths := map[string]string{}
	compare := func(when string) {
		t.Helper()
		for lv, c := range want {
			c.compare(t, paths[lv], lv+" "+when)
		}
	}
	for lv := range want {
		paths[lv] = must(p.Activate(ctx, lv))(t)
		if f, err := os.OpenFile(paths[lv], os.O_WRONLY, 0); err == nil {
			if _, err := f.Write(make([]byte, 4096)); err == nil {
				t.Error("a reader can be written")
			}
			f.Close()
		}
	}
	compare("fresh")
	base.scribble(t, r, path, 10)
	compare("after writes to the source")
	noFindings(t, p)

	before := devicesOf(t, p)
	group := p.vgName
	for _, command := range []string{"vgck GROUP", "vgs GROUP", "lvs -a GROUP", "vgcfgbackup -f /tmp/backup GROUP", "vgchange -ay GROUP"} {
		quiet(t, strings.ReplaceAll(command, "GROUP", group))
	}
	for name, table := range devicesOf(t, p) {
		if before[name] != table && name != "rest" {
			t.Errorf("vgchange -ay changed the table of %s to %s from %s", name, table, before[name])
		}
	}
	quiet(t, "lvremove -q -y "+group+"/rest")
	ok(t, p.refresh(ctx))

	reader := clone.LV
	for what, err := range map[string]error{
		"cut":    second(p.CreateSnapshot(ctx, "x", reader)),
		"clone":  second(p.CreateVolume(ctx, VolumeSpec{Name: "x", Mode: Block, Source: Source{Kind: FromVolume, LV: reader}})),
		"expand": second(p.ExpandVolume(ctx, reader, v.Size+1, 0)),
	} {
		if !errors.Is(err, ErrPrecondition) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got, err := p.ExpandVolume(ctx, reader, v.Size, 0); err != nil || got.Size != v.Size {
		t.Errorf("expanding a reader to its own size returned %v, %v", got, err)
	}
	larger := VolumeSpec{Name: "x", Size: v.Size + 1, Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: "s1"}}
	if _, err := p.CreateVolume(ctx, larger); !errors.Is(err, ErrOutOfRange) {
		t.Errorf("a reader that is larger than its snapshot returned %v", err)
	}

	must(p.CreateSnapshot(ctx, "s4", v.LV))(t)
	base.scribble(t, r, path, 10)
	compare("after another cut")
	for _, name := range []string{"s2", "s3", "s1"} {
		ok(t, p.DeleteSnapshot(ctx, name))
		base.scribble(t, r, path, 5)
		compare("after the delete of " + name)
	}
	config := p.config
	ok(t, p.Close())
	p = openPool(t, config)
	compare("after a restart")
	ok(t, p.Deactivate(ctx, v.LV))
	ok(t, p.DeleteVolume(ctx, v.LV))
	ok(t, p.DeleteSnapshot(ctx, "s4"))
	compare("after the delete of their source")
	for lv := range want {
		if err := p.Deactivate(ctx, lv); err != nil {
			t.Fatal(err)
		}
	}
	if left := settledTo(t, p, 0); len(left) != 0 {
		t.Errorf("nothing is active, but devices are left: %v", left)
	}
	for lv := range want {
		paths[lv] = must(p.Activate(ctx, lv))(t)
	}
	compare("active again")
	noFindings(t, p)
	for lv, c := range want {
		c.compare(t, paths[lv], lv+" before its end")
		ok(t, p.DeleteVolume(ctx, lv))
	}
	waitIdle(t, p)
	if left := settledTo(t, p, 0); len(left) != 0 {
		t.Errorf("devices are left: %v", left)
	}
	if n := len(must(p.latest())(t).VG.LVs); n != 0 {
		t.Errorf("%d logical volumes are left", n)
	}
}

func second[T any](_ T, err error) error { return err }

// TestReader_ofFork: a reader shows a snapshot of a volume that is being hydrated.
func TestReader_ofFork(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.HydrationRate = 4 * size.MiB })
	r := rand.New(rand.NewPCG(5, 6))
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 64 * size.MiB, Mode: Block}))(t)
	base := make(content, v.Size)
	path := must(p.Activate(ctx, v.LV))(t)
	base.scribble(t, r, path, 200)
	must(p.CreateSnapshot(ctx, "s1", v.LV))(t)
	fork := must(p.CreateVolume(ctx, VolumeSpec{Name: "fork", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "s1"}}))(t)
	forkPath := must(p.Activate(ctx, fork.LV))(t)
	forked := content(bytes.Clone(base))
	forked.scribble(t, r, forkPath, 50)
	must(p.CreateSnapshot(ctx, "s2", fork.LV))(t)
	cut := content(bytes.Clone(forked))
	reader := must(p.CreateVolume(ctx, VolumeSpec{Name: "reader", Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: "s2"}}))(t)
	shown := must(p.Activate(ctx, reader.LV))(t)
	passes := 0
	for ; must(p.latest())(t).VolumeByLV(fork.LV).Forked(); passes++ {
		forked.scribble(t, r, forkPath, 10)
		base.scribble(t, r, path, 5)
		cut.compare(t, shown, fmt.Sprintf("the reader in pass %d", passes))
		if passes == 2 { // activate the reader again, without the fork's own device
			ok(t, p.Deactivate(ctx, reader.LV))
			ok(t, p.Deactivate(ctx, fork.LV))
			shown = must(p.Activate(ctx, reader.LV))(t)
			cut.compare(t, shown, "the reader while the fork is not active")
			forkPath = must(p.Activate(ctx, fork.LV))(t)
		}
	}
	if passes < 3 {
		t.Errorf("the fork was hydrated after %d passes, too early for this test", passes)
	}
	cut.compare(t, shown, "the reader in the end")
	forked.compare(t, forkPath, "the fork in the end")
	ok(t, p.DeleteSnapshot(ctx, "s2"))
	noFindings(t, p)
	ok(t, p.DeleteVolume(ctx, reader.LV))
	forked.compare(t, forkPath, "the fork without a reader")
	waitIdle(t, p)
	if tables := devicesOf(t, p); strings.Contains(tables["fork"], "snapshot") {
		t.Errorf("the hydrated fork still has a snapshot: %v", tables)
	}
}

// TestReader_lostSnapshot: if a snapshot is lost, the health of its readers reports
// SourceLost. The readers can no longer be activated, and no more can be created.
func TestReader_lostSnapshot(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 64 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	must(p.CreateSnapshot(ctx, "s1", v.LV))(t)
	full(t, p)
	for _, name := range []string{"r1", "r2"} {
		must(p.CreateVolume(ctx, VolumeSpec{Name: name, Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: "s1"}}))(t)
	}
	must(p.Activate(ctx, "r1"))(t)
	if c := must(p.Health(ctx, "r1"))(t); len(c) != 0 {
		t.Errorf("the health of a reader before the loss is %v", c)
	}
	for at := int64(0); at < int64(v.Size); at += 1 << 20 { // more than the store holds
		writeDevice(t, path, at, bytes.Repeat([]byte{1}, 1<<20))
	}
	for _, name := range []string{"r1", "r2"} {
		if c := must(p.Health(ctx, name))(t); len(c) != 1 || c[0].Severity != DataLoss || c[0].Reason != "SourceLost" {
			t.Errorf("the health of %s is %v, want SourceLost", name, c)
		}
	}
	if _, err := p.Activate(ctx, "r2"); !errors.Is(err, ErrLost) {
		t.Errorf("Activate returned %v, want ErrLost", err)
	}
	for end := time.Now().Add(10 * time.Second); !must(p.Snapshot(ctx, "s1"))(t).Lost && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond) // until the loss is recorded
	}
	if _, err := p.CreateVolume(ctx, VolumeSpec{Name: "r3", Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: "s1"}}); !errors.Is(err, ErrLost) {
		t.Errorf("CreateVolume returned %v, want ErrLost", err)
	}
	for _, lv := range []string{"r1", "r2"} {
		ok(t, p.Deactivate(ctx, lv))
		ok(t, p.DeleteVolume(ctx, lv))
	}
	ok(t, p.DeleteSnapshot(ctx, "s1"))
}
