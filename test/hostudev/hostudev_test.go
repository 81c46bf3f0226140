//go:build kernel

// Package hostudev runs the driver as the DaemonSet does, in namespaces of its
// own, on a host with a real udevd and on a host without. Nothing may hang,
// links must be right, udev must leave hidden devices alone, and the driver may
// be replaced without anybody noticing.
package hostudev

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

type callOption = grpc.CallOption

func number(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }

// dmNames maps the names of the group's devices to their names in /dev.
func dmNames(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("/sys/block/dm-*/dm/name")
	must(t, err)
	names := map[string]string{}
	for _, file := range files {
		name, err := os.ReadFile(file)
		if err != nil {
			continue // it is being removed
		}
		if s := strings.TrimSpace(string(name)); strings.HasPrefix(s, vgName+"-") {
			names[s] = filepath.Base(filepath.Dir(filepath.Dir(file)))
		}
	}
	return names
}

// dmName returns the name that LVM2 gives to the device of a logical volume.
func dmName(lv string) string { return vgName + "-" + strings.ReplaceAll(lv, "-", "--") }

// TestHost_withUdev: on a host with udev, volumes live through all their states, udev
// makes the right links and hides inner devices, lvm2 works, nothing is left, and
// there is no storm of events.
func TestHost_withUdev(t *testing.T) {
	startUdev(t)
	n := newNode(t)
	const rounds = 2
	e := watchEvents(t)
	for round := range rounds {
		n.life(round, func(volume, copied string) {
			run(t, "udevadm", "settle")
			checkLinks(t, volume)
			checkLinks(t, copied)
			checkHidden(t)
			// lvm2 waits for udev by a semaphore in the host's IPC namespace.
			run(t, "lvcreate", "-q", "-Wn", "-n", "theirs", "-L", "8m", vgName)
			run(t, "lvremove", "-q", "-y", vgName+"/theirs")
			run(t, "vgck", vgName)
			run(t, "lvs", vgName)
		})
	}
	nothingLeft(t)
	run(t, "udevadm", "settle")
	if left, _ := filepath.Glob("/dev/mapper/" + vgName + "*"); len(left) > 0 {
		t.Errorf("the links or nodes %v are left", left)
	}

	// A storm is a retry that causes an event that causes a retry. One life
	// makes and removes about 30 devices, with about three events for each.
	all, synthetic := e.count(t)
	t.Logf("%d events in %d rounds, %d of them synthetic", all, rounds, synthetic)
	const most = 250
	if all > most*rounds {
		t.Errorf("%d events, want at most %d", all, most*rounds)
	}
	time.Sleep(2 * time.Second)
	if all, _ := e.count(t); all > 0 {
		t.Errorf("%d events while nothing happens", all)
	}
}

// nothingLeft waits until the group has neither a logical volume nor a device.
// Deleted volumes are wiped one after the other, with a device for each.
func nothingLeft(t *testing.T) {
	t.Helper()
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		lvs := strings.TrimSpace(run(t, "lvs", "--noheadings", "-o", "lv_name", vgName))
		if lvs == "" && len(dmNames(t)) == 0 {
			return
		}
		if time.Since(begun) > patience {
			t.Errorf("the logical volumes %q and devices %v are left", lvs, dmNames(t))
			return
		}
	}
}

// checkLinks checks that udev made the links to a volume's device, and that the
// file system is found by its UUID on this device, not on a snapshot with the
// same content.
func checkLinks(t *testing.T, lv string) {
	t.Helper()
	device := dmNames(t)[dmName(lv)]
	if device == "" {
		t.Fatalf("no device %s", dmName(lv))
	}
	for _, link := range []string{"/dev/mapper/" + dmName(lv), "/dev/" + vgName + "/" + lv, "/dev/disk/by-id/dm-name-" + dmName(lv)} {
		st, err := os.Lstat(link)
		if err != nil {
			t.Error(err)
			continue
		}
		if st.Mode().Type() != os.ModeSymlink {
			t.Errorf("%s is not a symbolic link: %v", link, st.Mode())
		}
		if target, err := filepath.EvalSymlinks(link); err != nil || target != "/dev/"+device {
			t.Errorf("%s leads to %s, %v; want %s", link, target, err, device)
		}
	}
	if got := property(t, device, "ID_FS_TYPE"); got != "ext4" {
		t.Errorf("udev reports the file system of %s as %q, want ext4", dmName(lv), got)
	}
}

// checkHidden checks that udev did not look into the devices below a volume.
func checkHidden(t *testing.T) {
	t.Helper()
	hidden := 0
	for name, device := range dmNames(t) {
		if !strings.HasSuffix(name, "-real") && !strings.HasSuffix(name, "-cow") {
			continue
		}
		hidden++
		for _, key := range []string{"ID_FS_TYPE", "ID_FS_UUID"} {
			if got := property(t, device, key); got != "" {
				t.Errorf("udev looked into %s: %s is %s", name, key, got)
			}
		}
		links, err := filepath.Glob("/dev/disk/by-*/*")
		must(t, err)
		for _, link := range links {
			if target, err := filepath.EvalSymlinks(link); err == nil && target == "/dev/"+device {
				t.Errorf("%s leads to the hidden device %s", link, name)
			}
		}
	}
	if hidden < 2 {
		t.Errorf("only %d hidden devices, but a volume with a snapshot has two", hidden)
	}
}

// TestHost_withoutUdev: on a host without udev, the host's tools find the nodes that
// the driver made, and nothing is left.
func TestHost_withoutUdev(t *testing.T) {
	n := newNode(t)
	n.life(0, func(volume, _ string) {
		// The host's tools find the nodes that the driver made in the host's /dev.
		st, err := os.Lstat("/dev/mapper/" + dmName(volume))
		if err != nil || st.Mode().Type() != os.ModeDevice {
			t.Errorf("%v, %v", st, err)
		}
		run(t, "vgck", vgName)
	})
	nothingLeft(t)
	if left, _ := filepath.Glob("/dev/mapper/" + vgName + "*"); len(left) > 0 {
		t.Errorf("the nodes %v are left", left)
	}
}

// TestHost_driverIsReplaced: a pod continues to write while the driver is killed,
// absent, and replaced.
func TestHost_driverIsReplaced(t *testing.T) {
	startUdev(t)
	n := newNode(t)
	v := n.create("vol", nil, volumeBytes)
	n.publish("vol", v)
	s := n.snapshot("snap", v)
	stop, written := make(chan struct{}), make(chan error, 1)
	go func() { written <- writer(filepath.Join(n.pod("vol"), "log"), stop) }()
	for _, signal := range []unix.Signal{unix.SIGKILL, unix.SIGTERM} {
		n.end(signal)
		time.Sleep(500 * time.Millisecond) // the pod continues without a driver
		n.start()
		n.deleteSnapshot(s)
		s = n.snapshot("snap", v)
	}
	close(stop)
	if err := <-written; err != nil {
		t.Errorf("the pod's writes: %v", err)
	}
	// The third container undoes mounts of the first one.
	n.unpublish("vol", v)
	if entries, err := os.ReadDir(n.pod("vol")); err == nil && len(entries) > 0 {
		t.Errorf("still mounted on the host: %v", entries)
	}
	n.deleteSnapshot(s)
	n.deleteVolume(v)
}

// writer repeatedly writes to a file and syncs it, until stop is closed.
func writer(path string, stop chan struct{}) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		if at, _ := f.Seek(0, 1); at > 8<<20 {
			if _, err := f.Seek(0, 0); err != nil {
				return err
			}
		}
	}
}
