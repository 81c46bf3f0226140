//go:build kernel

package pool

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// multipath is a map with one path, a scratch disk.
type multipath struct {
	t    *testing.T
	disk string
	path dm.Device
}

const mapNode = "/dev/mapper/mpatha"

func newMultipath(t *testing.T, disk string) *multipath {
	t.Helper()
	m := &multipath{t, disk, must(dm.DeviceOf(disk))(t)}
	m.assemble()
	t.Cleanup(func() { exec.Command("dmsetup", "remove", "--retry", "--noudevsync", "mpatha").Run() })
	return m
}

// assemble makes the map, as multipathd does.
func (m *multipath) assemble() {
	m.t.Helper()
	command(m.t, "dmsetup", "create", "--noudevsync", "mpatha", "--uuid", "mpath-360014050000000000000000000000001", "--table",
		fmt.Sprintf("0 %s multipath 0 0 1 1 service-time 0 1 2 %v 1 1", command(m.t, "blockdev", "--getsz", m.disk), m.path))
}

func (m *multipath) fail() {
	m.t.Helper()
	command(m.t, "dmsetup", "message", "mpatha", "0", fmt.Sprintf("fail_path %v", m.path))
}

func (m *multipath) reinstate() {
	m.t.Helper()
	command(m.t, "dmsetup", "message", "mpatha", "0", fmt.Sprintf("reinstate_path %v", m.path))
}

// unused fails the test if anything but the map lies on the path.
func (m *multipath) unused(when string) {
	m.t.Helper()
	for _, line := range strings.Split(command(m.t, "dmsetup", "table"), "\n") {
		if !strings.HasPrefix(line, "mpatha:") && slices.Contains(strings.Fields(line), m.path.String()) {
			m.t.Errorf("%s: the path below the map is used: %s", when, line)
		}
	}
}

// back waits until a volume can be made, and makes it.
func back(t *testing.T, p *Pool, name string) Volume {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		v, err := p.CreateVolume(context.Background(), VolumeSpec{Name: name, Size: 16 * size.MiB, Mode: Block})
		if err == nil {
			return v
		}
		if time.Now().After(end) {
			t.Fatalf("creating volume %s: %v", name, err)
		}
	}
}

// A path of a multipath map is no disk of the pool, also while the map fails:
// calls fail until it is back.
func TestPathOfFailedMap(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name    string
		devices []string // beside the map
		given   bool
	}{
		{"one disk, searched for", nil, false},
		{"two disks, searched for", []string{"second"}, false},
		{"two disks, configured", []string{"second"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			disks := testDisks(t)
			m := newMultipath(t, disks[0])
			config := Config{Name: "pool", VolumeGroup: "vgpath", Devices: []string{mapNode}, Create: true}
			if c.devices != nil {
				config.Devices = append(config.Devices, disks[1])
			}
			p := openPool(t, config)
			ok(t, p.Close())
			if config.Create = false; !c.given {
				config.Devices = nil
			}
			p = openPool(t, config)
			v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 16 * size.MiB, Mode: Block}))(t)
			fails := func(p *Pool, when string) {
				t.Helper()
				for n := range 3 {
					if n > 0 {
						time.Sleep(refreshPause / 2)
					}
					if _, err := p.CreateVolume(ctx, VolumeSpec{Name: "new", Size: 16 * size.MiB, Mode: Block}); !errors.Is(err, ErrUnavailable) {
						t.Errorf("%s: a volume is made: %v", when, err)
					}
				}
				m.unused(when)
			}
			m.fail()
			fails(p, "the map fails")
			ok(t, p.Close())
			opening, cancel := context.WithTimeout(ctx, 20*time.Second)
			again, err := Open(opening, config, Options{})
			cancel()
			if err == nil {
				fails(again, "opened while the map fails")
				ok(t, again.Close())
			} else if !errors.Is(err, ErrUnavailable) {
				t.Errorf("opened while the map fails: %v", err)
			}
			m.reinstate()
			p = openPool(t, config)
			m.fail()
			fails(p, "the map fails again")
			m.reinstate()
			back(t, p, "new")
			must(p.Activate(ctx, v.LV))(t)
			m.unused("the map is back")
			ok(t, p.Deactivate(ctx, v.LV))
			ok(t, p.Close())
		})
	}
}
