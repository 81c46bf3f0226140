//go:build kernel

package hostudev

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/test/machine"
)

// TestHost_productionExample: examples/production.yaml works on a machine with udev,
// three links for each disk, a system disk with partitions, a group made by lvm2, and
// one blank disk. lvm2 uses a devices file and sees both pools.
func TestHost_productionExample(t *testing.T) {
	if err := machine.Ours(); err != nil {
		t.Skip(err)
	}
	pools := production(t)
	system, blank, large := disks()[0], disks()[1], disks()[2]
	for _, d := range disks() {
		wipe(t, d)
	}
	prepared(t)(machine.Links())
	prepared(t)(machine.System(system, t.TempDir()))
	startUdev(t)
	prepared(t)(machine.DevicesFile())
	run(t, "vgcreate", "-q", "vg-large", large)
	before := sumOf(t, system)
	for _, name := range []string{"nvme-eui.ubda", "nvme-Disk_ubda_1-part2", "nvme-eui.ubdb", "nvme-Disk_ubdc"} {
		if _, err := os.Stat("/dev/disk/by-id/" + name); err != nil {
			t.Fatal(err)
		}
	}

	n := newNodeWith(t, pools)
	for _, c := range pools {
		n.pool = c.Name
		n.shortLife()
		run(t, "vgck", c.VolumeGroup)
		want := map[string]string{"vg-fast": blank, "vg-large": large}
		if got := groups(t); !maps.Equal(got, want) {
			t.Errorf("lvm2 sees %v, want %v", got, want)
		}
		if c.Create { // a restarted driver finds the same
			n.end(unix.SIGKILL)
			n.start()
		}
	}
	if sumOf(t, system) != before {
		t.Error("the content of the system disk has changed")
	}
	for _, c := range pools {
		checked, err := pool.Verify(context.Background(), c, pool.Options{})
		must(t, err)
		if len(checked.Findings) > 0 {
			t.Errorf("check of %s: %v", c.Name, checked.Findings)
		}
	}
	seen, err := pool.Inspect(context.Background(), pools[0], pool.Options{})
	must(t, err)
	left := map[string]string{}
	for _, l := range seen.LeftOut {
		target, err := filepath.EvalSymlinks(l.Device)
		must(t, err)
		if left[target] != "" {
			t.Errorf("%s is listed twice", target)
		}
		left[target] = l.Why
		if strings.Contains(l.Why, "wipe") {
			t.Errorf("%s: %s", target, l.Why)
		}
	}
	for device, why := range map[string]string{system: "has partitions", system + "1": "in use", system + "2": "in use", system + "3": "partition of " + system, large: "volume group vg-large"} {
		if !strings.Contains(left[device], why) {
			t.Errorf("%s is left out because %q, want %q", device, left[device], why)
		}
	}
	if len(left) != 5 {
		t.Errorf("%v are left out, want 5 devices", left)
	}
}

// shortLife makes and deletes a volume, a snapshot of it, and a volume restored
// from the snapshot.
func (n *node) shortLife() {
	n.Helper()
	v := n.create("vol-"+n.pool, nil, volumeBytes)
	n.publish("vol-"+n.pool, v)
	n.write("vol-"+n.pool, "content")
	s := n.snapshot("snap-"+n.pool, v)
	c := n.create("copy-"+n.pool, ofSnapshot(s), volumeBytes)
	n.publish("copy-"+n.pool, c)
	n.read("copy-"+n.pool, "content")
	n.unpublish("copy-"+n.pool, c)
	n.unpublish("vol-"+n.pool, v)
	n.deleteVolume(c)
	n.deleteSnapshot(s)
	n.deleteVolume(v)
}

// production reads the pools of the chart's example.
func production(t *testing.T) []pool.Config {
	t.Helper()
	text, err := os.ReadFile("../../deploy/helm/csi-dmsnap/examples/production.yaml")
	must(t, err)
	var values struct {
		Pools []struct {
			Name, VolumeGroup   string
			Devices             []string
			Create              bool
			LayerReservePercent uint
		}
	}
	must(t, yaml.Unmarshal(text, &values))
	var pools []pool.Config
	for _, p := range values.Pools {
		pools = append(pools, pool.Config{Name: p.Name, VolumeGroup: p.VolumeGroup, Devices: p.Devices, Create: p.Create, LayerReserve: p.LayerReservePercent})
	}
	if len(pools) != 2 || !pools[0].Create {
		t.Fatalf("the example has the pools %+v", pools)
	}
	return pools
}

// prepared undoes a part of the machine at the end of the test. It skips the
// test if the machine is not a test kernel.
func prepared(t *testing.T) func(undo func() error, err error) {
	return func(undo func() error, err error) {
		t.Helper()
		if errors.Is(err, machine.ErrNotOurs) {
			t.Skip(err)
		}
		must(t, err)
		t.Cleanup(func() { must(t, undo()) })
	}
}

// groups returns the volume groups that lvm2 sees, with their devices.
func groups(t *testing.T) map[string]string {
	t.Helper()
	out, err := exec.Command("pvs", "--noheadings", "-o", "vg_name,pv_name").Output()
	must(t, err)
	found := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) == 2 {
			found[fields[0]] += fields[1]
		}
	}
	return found
}

// sumOf returns a checksum of the beginning of the system disk, and of the
// places where its second and third partitions begin.
func sumOf(t *testing.T, disk string) string {
	t.Helper()
	f, err := os.Open(disk)
	must(t, err)
	defer f.Close()
	sum := sha256.New()
	for _, at := range []int64{0, 300, 500} {
		_, err = io.Copy(sum, io.NewSectionReader(f, at<<20, 8<<20))
		must(t, err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}
