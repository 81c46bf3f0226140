//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

// assemble makes the map, like multipathd.
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

// unused fails the test if a device other than the map lies on the path.
func (m *multipath) unused(when string) {
	m.t.Helper()
	for _, line := range strings.Split(command(m.t, "dmsetup", "table"), "\n") {
		if !strings.HasPrefix(line, "mpatha:") && slices.Contains(strings.Fields(line), m.path.String()) {
			m.t.Errorf("%s: the path below the map is used: %s", when, line)
		}
	}
}

// back retries to create a volume until it succeeds.
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

// TestMultipath_pathOfFailedMap: a path of a multipath map is no disk of the pool,
// even while the map fails: calls fail until the map is back.
func TestMultipath_pathOfFailedMap(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name    string
		devices []string // devices in the configuration besides the map
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
				for n := range 2 {
					time.Sleep(time.Duration(n) * refreshPause)
					if _, err := p.CreateVolume(ctx, VolumeSpec{Name: "new", Size: 16 * size.MiB, Mode: Block}); !errors.Is(err, ErrUnavailable) {
						t.Errorf("%s, CreateVolume returned %v", when, err)
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
				t.Errorf("Open while the map fails returned %v", err)
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

// TestMultipath_pathWithoutMap: while the map is missing, the pool uses none of its
// paths: neither while the pool is open, nor through a link that now leads to the path,
// nor after a restart.
func TestMultipath_pathWithoutMap(t *testing.T) {
	ctx := context.Background()
	link := filepath.Join(t.TempDir(), "wwn-0x60014050")
	lead := func(t *testing.T, to string) {
		t.Helper()
		os.Remove(link)
		ok(t, os.Symlink(to, link))
	}
	for _, c := range []struct {
		name   string
		device string
		listed bool // the configuration names the device
		udev   bool
	}{
		{"found, by the metadata", mapNode, false, false},
		{"by a link, by the metadata", mapNode, true, false},
		{"by a link, by udev", link, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			disks := testDisks(t)
			m := newMultipath(t, disks[0])
			lead(t, mapNode)
			if c.udev {
				ok(t, os.MkdirAll("/run/udev/data", 0o755))
				file := fmt.Sprintf("/run/udev/data/b%v", m.path)
				ok(t, os.WriteFile(file, []byte("I:1\nE:DM_MULTIPATH_DEVICE_PATH=1\nE:ID_FS_TYPE=mpath_member\nG:systemd\n"), 0o644))
				t.Cleanup(func() { os.Remove(file) })
			}
			config := Config{Name: "pool", VolumeGroup: "vgpath", Devices: []string{c.device}, Create: true}
			p := openPool(t, config)
			v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 16 * size.MiB, Mode: Block}))(t)
			ok(t, p.Close())
			if config.Devices, config.Create = []string{filepath.Dir(link) + "/wwn-*"}, false; !c.listed {
				config.Devices = nil
			}
			p = openPool(t, config)
			must(p.Activate(ctx, v.LV))(t)
			ok(t, p.Deactivate(ctx, v.LV))
			gone := func(p *Pool) { // an open one has the map open as long as it can be read
				t.Helper()
				m.fail()
				for end := time.Now().Add(20 * time.Second); p.broken.Load() == nil && time.Now().Before(end); {
					time.Sleep(10 * time.Millisecond)
				}
				command(t, "dmsetup", "remove", "--retry", "--noudevsync", "mpatha")
				lead(t, disks[0])
			}
			gone(p)
			fails := func(p *Pool, when string) {
				t.Helper()
				if _, err := p.Activate(ctx, v.LV); !errors.Is(err, ErrUnavailable) {
					t.Errorf("%s, Activate returned %v", when, err)
				}
				if _, err := p.CreateVolume(ctx, VolumeSpec{Name: "new", Size: 16 * size.MiB, Mode: Block}); !errors.Is(err, ErrUnavailable) {
					t.Errorf("%s, CreateVolume returned %v", when, err)
				}
				m.unused(when)
			}
			fails(p, "without the map")
			ok(t, p.Close())
			opening, cancel := context.WithTimeout(ctx, 20*time.Second)
			again, err := Open(opening, config, Options{})
			cancel()
			if err == nil {
				fails(again, "opened without the map")
				ok(t, again.Close())
			} else if !errors.Is(err, ErrUnavailable) {
				t.Errorf("Open without the map returned %v", err)
			}
			m.assemble()
			lead(t, mapNode)
			p = openPool(t, config)
			gone(p)
			fails(p, "without the map again")
			command(t, "dmsetup", "create", "--noudevsync", "takes-the-number", "--table", "0 8 zero")
			t.Cleanup(func() { exec.Command("dmsetup", "remove", "--retry", "--noudevsync", "takes-the-number").Run() })
			m.assemble()
			lead(t, mapNode)
			back(t, p, "new")
			must(p.Activate(ctx, v.LV))(t)
			m.unused("the map is back")
			ok(t, p.Deactivate(ctx, v.LV))
			ok(t, p.Close())
		})
	}
}

// TestMultipath_mapOfDiskInUse: after a map is made of a disk in use, the pool uses
// the map, and its open volumes move to the map.
func TestMultipath_mapOfDiskInUse(t *testing.T) {
	ctx := context.Background()
	disk := testDisks(t)[0]
	p := openPool(t, Config{Name: "pool", VolumeGroup: "vgpath", Devices: []string{disk, "/dev/mapper/mpat*"}, Create: true})
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 16 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	model := bytes.Repeat([]byte("up"), 1<<11)
	writeDevice(t, path, 0, model)
	must(p.CreateSnapshot(ctx, "s", v.LV))(t)
	held := must(os.Open(path))(t)
	m := newMultipath(t, disk)
	command(t, "vgchange", "--devices", mapNode, "--addtag", "changed", p.vgName)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if table := command(t, "dmsetup", "table"); strings.Count(table, m.path.String()+" ") == 1 {
			break
		} else if time.Now().After(end) {
			t.Fatalf("the volume still lies on the path:\n%s", table)
		}
	}
	if got := readDevice(t, path, size.Bytes(len(model))); !bytes.Equal(got, model) {
		t.Error("the volume has other content")
	}
	must(p.CreateSnapshot(ctx, "s2", v.LV))(t)
	noFindings(t, p)
	ok(t, held.Close())
	ok(t, p.Deactivate(ctx, v.LV))
	ok(t, p.Close())
}

// TestStacks_memberIsNoDisk: a disk below another device is no disk of the pool. The
// test has a disk below a failing device made by hand, and members of a mirror whose
// superblock is at the end.
func TestStacks_memberIsNoDisk(t *testing.T) {
	ctx := context.Background()
	unavailable := func(t *testing.T, config Config, why string) {
		t.Helper()
		opening, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		p, err := Open(opening, config, Options{})
		if err == nil {
			_, err = p.CreateVolume(ctx, VolumeSpec{Name: "new", Size: 16 * size.MiB, Mode: Block})
			p.Close()
		}
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), why) {
			t.Errorf("the error is %v", err)
		}
	}
	t.Run("linear", func(t *testing.T) {
		disk := testDisks(t)[0]
		length := command(t, "blockdev", "--getsz", disk)
		command(t, "dmsetup", "create", "--noudevsync", "byhand", "--table", "0 "+length+" linear "+disk+" 0")
		t.Cleanup(func() { exec.Command("dmsetup", "remove", "--retry", "--noudevsync", "byhand").Run() })
		config := Config{Name: "pool", VolumeGroup: "vgpart", Devices: []string{"/dev/mapper/byhand"}, Create: true}
		ok(t, openPool(t, config).Close())
		config.Devices, config.Create = []string{disk}, false
		command(t, "dmsetup", "suspend", "--noudevsync", "--noflush", "byhand") // a suspended device still maps the disk
		unavailable(t, config, "byhand")
		command(t, "dmsetup", "resume", "--noudevsync", "byhand")
		config.Devices = []string{disk, "/dev/mapper/byhand"}
		p := openPool(t, config)
		if got := must(p.latest())(t).VG.PVs[0].Device; got != "/dev/mapper/byhand" {
			t.Errorf("the physical volume is on %s", got)
		}
		ok(t, p.Close())
	})
	t.Run("mirror", func(t *testing.T) {
		disk := testDisks(t)[0]
		// Smaller than the disk, like the device that is made of it.
		command(t, "pvcreate", "-y", "--setphysicalvolumesize", "1000m", disk)
		command(t, "vgcreate", "vgpart", disk)
		config := Config{Name: "pool", VolumeGroup: "vgpart", Devices: []string{disk}}
		ok(t, openPool(t, config).Close())
		f := must(os.OpenFile(disk, os.O_RDWR, 0))(t)
		defer f.Close()
		end := must(f.Seek(0, 2))(t)
		must(f.WriteAt([]byte{0xfc, 0x4e, 0x2b, 0xa9, 1}, (end-8192)&^4095))(t)
		ok(t, f.Sync())
		unavailable(t, config, "Linux RAID member")
	})
}

// TestMultipath_twoPathsWithoutMap: two paths without a map are two devices with the
// same physical volume. An open pool does not switch to the other device when its own is
// gone. A pool is not opened while it is unclear which device is meant.
func TestMultipath_twoPathsWithoutMap(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	ok(t, unix.Mount("disk", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	file := filepath.Join(dir, "disk")
	command(t, "truncate", "-s", "200M", file)
	first := looped(t, file)
	config := Config{Name: "pool", VolumeGroup: "vgpaths", Devices: []string{first}, Create: true}
	ok(t, openPool(t, config).Close())
	config.Devices, config.Create = []string{"/dev/loop*"}, false
	p := openPool(t, config)
	second := looped(t, file)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 16 * size.MiB, Mode: Block}))(t)
	must(p.Activate(ctx, v.LV))(t)
	if got := must(p.latest())(t).VG.PVs[0].Device; got != first {
		t.Errorf("the physical volume is on %s", got)
	}
	ok(t, p.Close())
	p = openPool(t, config) // the kernel's devices use one of the paths
	if got := must(p.latest())(t).VG.PVs[0].Device; got != first {
		t.Errorf("in a reopened pool, the physical volume is on %s", got)
	}
	ok(t, p.Deactivate(ctx, v.LV))
	ok(t, p.Close())
	opening, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if _, err := Open(opening, config, Options{}); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), second) {
		t.Errorf("Open with two paths to one disk returned %v", err)
	}
}

// TestMultipath_adviceWithoutMap: while a map fails or is missing, its disk is still
// there. The advice is to bring the map back, not to abandon the physical volume.
func TestMultipath_adviceWithoutMap(t *testing.T) {
	ctx := context.Background()
	disks := testDisks(t)
	m := newMultipath(t, disks[0])
	config := Config{Name: "pool", VolumeGroup: "vgadvice", Devices: []string{mapNode, disks[1]}, Create: true}
	p := openPool(t, config)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: size.GiB, Mode: Block}))(t) // on both disks
	advised := func(when string) {
		t.Helper()
		_, err := p.CreateVolume(ctx, VolumeSpec{Name: "new", Size: 16 * size.MiB, Mode: Block})
		texts := []string{fmt.Sprint(err)}
		_, err = p.Activate(ctx, v.LV)
		texts = append(texts, fmt.Sprint(err))
		for _, c := range slices.Concat(p.PoolHealth(ctx), must(p.Health(ctx, v.LV))(t)) {
			if c.Reason == "DeviceMissing" {
				texts = append(texts, c.Message)
			}
			if strings.Contains(c.Message, "removemissing") {
				t.Errorf("%s: the volume's health is %q", when, c.Message)
			}
		}
		for _, f := range must(Verify(ctx, config, Options{}))(t).Findings {
			if f.Reason == "DiskMissing" {
				texts = append(texts, f.What+": "+f.Do)
			}
		}
		if len(texts) != 5 {
			t.Errorf("%s: some messages do not name the disk: %q", when, texts)
		}
		for _, text := range texts {
			if strings.Contains(text, "removemissing") || !strings.Contains(text, disks[0]) || !strings.Contains(text, "bring it back") {
				t.Errorf("%s: the advice is %q", when, text)
			}
		}
	}
	missing := func() {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); must(p.latest())(t).Writable() == nil; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the pool does not notice that a disk is missing")
			}
		}
	}
	m.fail()
	missing()
	advised("the map fails")
	command(t, "dmsetup", "remove", "--retry", "--noudevsync", "mpatha")
	advised("the map is gone")
	time.Sleep(refreshPause) // the driver does not search for the disk at each read
	advised("the map is gone for longer")
	ok(t, p.Close())
	p = openPool(t, config)
	advised("opened without the map")
	ok(t, p.Close())
	m.assemble()
	p = openPool(t, config)
	must(p.Activate(ctx, v.LV))(t)
	ok(t, p.Deactivate(ctx, v.LV))
	noFindings(t, p)
	ok(t, p.Close())
}
