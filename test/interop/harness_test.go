//go:build kernel

// Package interop proves that this project's pools and LVM2's own commands work
// on one volume group in one kernel: each understands, activates and preserves
// what the other made.
//
//	go test -tags kernel -exec "$PWD/hack/testkernel exec" ./test/interop
//	go test ... ./test/interop -run TestTogether_concurrentCommands -together 10m
//
// It needs LVM2's commands and a kernel with dm-snapshot, dm-mirror and loop.
// Logical volumes of types that need other modules (RAID, thin, cache) are put
// into the metadata by vgcfgrestore and never activated.
package interop

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// group is a volume group on the scratch disks and, if open, the pool on it.
type group struct {
	*testing.T
	name   string
	disks  []string
	config pool.Config
	pool   *pool.Pool
	dm     *dm.Client
}

// newGroup makes a volume group on the first n scratch disks by vgcreate, or
// none if n is 0. The disks are blank before and after the test.
func newGroup(t *testing.T, n int) *group {
	t.Helper()
	disks := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")
	if len(disks) < 2 {
		t.Fatal("DMSNAP_TEST_DISKS must name two scratch disks; run these tests by hack/testkernel")
	}
	g := &group{T: t, name: "vg" + strings.ToLower(strings.ReplaceAll(t.Name(), "/", "")), disks: disks}
	var err error
	g.dm, err = dm.Open()
	g.ok(err)
	t.Cleanup(g.clear)
	g.config = pool.Config{Name: "pool", VolumeGroup: g.name, Devices: disks[:n], FirstStore: 8 * size.MiB}
	if n > 0 {
		g.lvm(append([]string{"vgcreate", "-q", g.name}, disks[:n]...)...)
	}
	return g
}

// clear removes every device of the group and blanks the disks.
func (g *group) clear() {
	g.close()
	for range 8 { // devices are stacked: each pass removes the top ones
		for _, name := range g.devices() {
			g.dm.Resume(name, 0)
			if g.dm.Remove(name, 0) == nil {
				g.dm.RemoveNode(name)
			}
		}
	}
	if left := g.devices(); len(left) > 0 {
		g.Errorf("these devices cannot be removed: %v", left)
	}
	for _, d := range g.disks {
		blank(g.T, d)
	}
	os.RemoveAll(filepath.Join("/dev", g.name))
	g.ok(g.dm.Close())
}

func blank(t *testing.T, disk string) {
	t.Helper()
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, end)
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, 0, end)
	}
	if err != nil {
		t.Fatalf("blanking %s: %v", disk, err)
	}
}

func (g *group) ok(err error) {
	g.Helper()
	if err != nil {
		g.Fatal(err)
	}
}

// open opens the pool on the group.
func (g *group) open() *pool.Pool {
	g.Helper()
	p, err := g.tryOpen(pool.Options{})
	g.ok(err)
	g.pool = p
	return p
}

func (g *group) tryOpen(o pool.Options) (*pool.Pool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return pool.Open(ctx, g.config, o)
}

// close closes the pool, as when the driver is stopped: the devices stay.
func (g *group) close() {
	g.Helper()
	if g.pool != nil {
		if err := g.pool.Close(); err != nil {
			g.Errorf("closing the pool: %v", err)
		}
		g.pool = nil
	}
}

// harmless matches messages of commands that succeeded. The last two come from
// LVM2's look, without a lock, at devices in /sys that come and go.
var harmless = regexp.MustCompile(`(?m)^\s*(WARNING: This metadata update is NOT backed up\.` +
	`|WARNING: Logical volume \S+ not zeroed\.` +
	`|/sys/block/dm-\d+/\S+: f\w+ failed: No such (file or directory|device)` +
	`|/dev/\S+: failed to find associated device structure for holder /dev/dm-\d+\.)?\n?`)

// run runs a command of LVM2 and returns its output. complaints is its exit
// code, if it failed, and what it wrote to stderr without harmless messages.
func run(args ...string) (out, complaints string) {
	var stdout, stderr bytes.Buffer
	c := exec.Command(args[0], args[1:]...)
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	complaints = strings.TrimSpace(harmless.ReplaceAllString(stderr.String(), ""))
	if err != nil {
		complaints = strings.TrimSpace(err.Error() + ": " + complaints)
	}
	return stdout.String(), complaints
}

// lvm runs a command of LVM2, which must neither fail nor complain.
func (g *group) lvm(args ...string) string {
	g.Helper()
	out, complaints := run(args...)
	if complaints != "" {
		g.Fatalf("%s: %s", strings.Join(args, " "), complaints)
	}
	return out
}

// vgck checks the metadata by vgck.
func (g *group) vgck(after string) {
	g.Helper()
	if out, complaints := run("vgck", g.name); out+complaints != "" {
		g.Errorf("after %s, vgck says: %s%s", after, out, complaints)
	}
}

// report returns LVM2's view of the group's logical volumes by their names.
func (g *group) report(fields string) map[string]map[string]string {
	g.Helper()
	out := g.lvm("lvs", "-a", "--reportformat", "json", "--units", "m", "--nosuffix", "-o", "lv_name,"+fields, g.name)
	var all struct {
		Report []struct{ LV []map[string]string }
	}
	g.ok(json.Unmarshal([]byte(out), &all))
	rows := map[string]map[string]string{}
	for _, row := range all.Report[0].LV {
		rows[strings.Trim(row["lv_name"], "[]")] = row
	}
	return rows
}

// metadata reads the group as it is on the disks.
func (g *group) metadata() *lvm2.VG {
	g.Helper()
	ctx := context.Background()
	s, err := lvm2.OpenVG(ctx, lvm2.Host{}, g.name, g.disks)
	g.ok(err)
	defer s.Close()
	vg, err := s.Read(ctx)
	g.ok(err)
	return vg
}

// settled waits until the pool has wiped deleted volumes and hydrated restored
// ones.
func (g *group) settled() *lvm2.VG {
	g.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		vg := g.metadata()
		if !slices.ContainsFunc(vg.LVs, trash) && !slices.ContainsFunc(vg.LVs, fork) {
			return vg
		}
		if time.Now().After(deadline) {
			g.Fatal("after 30 s, deleted volumes are not wiped, or restored volumes not hydrated")
		}
	}
}

func fork(lv *lvm2.LV) bool {
	return slices.ContainsFunc(lv.Tags, func(t string) bool { return strings.HasPrefix(t, "dmsnap:copy=") })
}

func trash(lv *lvm2.LV) bool { return slices.Contains(lv.Tags, "dmsnap:role=trash") }

// devices lists the group's devices. It waits until devices are gone that the
// pool has in the background for a moment, to wipe trash or to look at a frozen
// store.
func (g *group) devices() []string {
	g.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		all, err := g.dm.List()
		g.ok(err)
		var names []string
		for _, e := range all {
			if strings.HasPrefix(e.Name, strings.ReplaceAll(g.name, "-", "--")+"-") {
				names = append(names, e.Name)
			}
		}
		slices.Sort(names)
		passing := slices.ContainsFunc(names, func(n string) bool {
			snapshot, store := strings.CutSuffix(n, "-cow")
			return strings.Contains(n, "-dmsnap--trash--") || store && !slices.Contains(names, snapshot)
		})
		if !passing || time.Now().After(end) {
			return names
		}
	}
}

// TestMain lets subtests run concurrently although the guest has one CPU, and
// silences the pool's log, which repeats its errors.
func TestMain(m *testing.M) {
	flag.Set("test.parallel", "16")
	flag.Parse()
	if !testing.Verbose() {
		klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	}
	os.Exit(m.Run())
}
