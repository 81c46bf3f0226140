//go:build kernel

package hostudev

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/driver"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2/lvm2test"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// kubeletVariable names the kubelet's directory. If it is set, the test binary
// runs as the driver in a container. poolsVariable has the pools.
const (
	kubeletVariable = "DMSNAP_TEST_CONTAINER_KUBELET"
	poolsVariable   = "DMSNAP_TEST_CONTAINER_POOLS"
)

// vgName is the volume group of the pool.
const vgName = "vghost"

func TestMain(m *testing.M) {
	if kubelet := os.Getenv(kubeletVariable); kubelet != "" {
		if err := container(kubelet); err != nil {
			fmt.Fprintln(os.Stderr, "container:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// container runs in the new namespaces. It makes the mounts of the DaemonSet,
// and is the driver until SIGTERM.
func container(kubelet string) error {
	if err := enter(kubelet); err != nil {
		return fmt.Errorf("mounts: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	var configs []pool.Config
	if err := json.Unmarshal([]byte(os.Getenv(poolsVariable)), &configs); err != nil {
		return err
	}
	pools, err := pool.OpenSet(ctx, configs, pool.Options{})
	if err != nil {
		return err
	}
	d, err := driver.New(driver.Options{NodeName: "n1", KubeletDir: kubelet, Pools: pools})
	if err != nil {
		return errors.Join(err, pools.Close())
	}
	return errors.Join(d.Serve(ctx, "unix://"+socketOf(kubelet)), pools.Close())
}

func disks() []string { return strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",") }

func socketOf(kubelet string) string { return filepath.Join(kubelet, "csi.sock") }

// fromHost has the directories of /run that the container shares with the host.
var fromHost = []string{"/run/udev", "/run/lock/lvm", "/run/lvm", "/run/csi-dmsnap"}

// enter arranges the mounts of a new mount namespace as a container runtime
// does for the DaemonSet. Of the host's /run it has only four directories, one
// of them read-only. Only mounts below the kubelet's directory propagate.
func enter(kubelet string) error {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if m.Mountpoint == kubelet || strings.HasPrefix(m.Mountpoint, kubelet+"/") {
			continue
		}
		if err := unix.Mount("", m.Mountpoint, "", unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("%s: %w", m.Mountpoint, err)
		}
	}
	run, err := os.MkdirTemp("", "run")
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", run, "tmpfs", 0, ""); err != nil {
		return err
	}
	for _, source := range fromHost {
		target := filepath.Join(run, strings.TrimPrefix(source, "/run"))
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("%s: %w", source, err)
		}
		if source == "/run/udev" {
			if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				return fmt.Errorf("%s: %w", source, err)
			}
		}
	}
	if err := os.MkdirAll("/host/etc", 0o755); err != nil {
		return err
	}
	return errors.Join(
		unix.Mount(run, "/run", "", unix.MS_MOVE, ""),
		unix.Mount("/etc", "/host/etc", "", unix.MS_BIND, ""),
		unix.Mount("tmpfs", "/etc/lvm", "tmpfs", 0, ""), // the image has no /etc/lvm
		unix.Mount("proc", "/proc", "proc", 0, ""),      // of the new PID namespace
		unix.Mount("sysfs", "/sys", "sysfs", 0, ""),
	)
}

// node is the driver in its container, and the kubelet that talks to it.
type node struct {
	*testing.T
	kubelet string
	pools   []pool.Config
	pool    string // the pool of new volumes
	process *exec.Cmd
	connection
}

// connection has the clients of the CSI services at the socket.
type connection struct {
	conn       *grpc.ClientConn
	controller csi.ControllerClient
	kubeletAPI csi.NodeClient
}

// newNode prepares the host and starts the driver, with a pool on all disks.
func newNode(t *testing.T) *node {
	t.Helper()
	for _, d := range disks() {
		wipe(t, d)
	}
	return newNodeWith(t, []pool.Config{{Name: "pool", VolumeGroup: vgName, Devices: disks(), Create: true, FirstStore: 8 * size.MiB}})
}

// newNodeWith starts the driver with these pools.
func newNodeWith(t *testing.T, pools []pool.Config) *node {
	t.Helper()
	n := &node{T: t, kubelet: t.TempDir(), pools: pools, pool: pools[0].Name}
	for _, dir := range fromHost {
		must(t, os.MkdirAll(dir, 0o755)) // as the kubelet does: DirectoryOrCreate
	}
	must(t, unix.Mount(n.kubelet, n.kubelet, "", unix.MS_BIND, ""))
	// Shared, but not with the root's mount: otherwise the root would see each
	// mount twice.
	must(t, unix.Mount("", n.kubelet, "", unix.MS_PRIVATE, ""))
	must(t, unix.Mount("", n.kubelet, "", unix.MS_SHARED, ""))
	t.Cleanup(func() { must(t, unix.Unmount(n.kubelet, unix.MNT_DETACH)) })
	n.start()
	t.Cleanup(func() {
		n.end(unix.SIGTERM)
		for _, c := range pools {
			must(t, lvm2test.Remove(c.VolumeGroup))
		}
		for _, d := range disks() {
			wipe(t, d)
		}
	})
	return n
}

// start starts a new container, in IPC, mount, network, PID and UTS namespaces
// of its own.
func (n *node) start() {
	n.Helper()
	n.process = exec.Command("/proc/self/exe")
	pools, err := json.Marshal(n.pools)
	must(n.T, err)
	n.process.Env = append(os.Environ(), kubeletVariable+"="+n.kubelet, poolsVariable+"="+string(pools), "LVM_SYSTEM_DIR=/host/etc/lvm")
	n.process.Stdout, n.process.Stderr = os.Stderr, os.Stderr
	n.process.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWIPC | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS,
		Pdeathsig:  unix.SIGKILL,
	}
	must(n.T, n.process.Start())
	conn, err := grpc.NewClient("unix://"+socketOf(n.kubelet), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	must(n.T, err)
	n.connection = connection{conn, csi.NewControllerClient(conn), csi.NewNodeClient(conn)}
}

// end ends the container by a signal and waits for it.
func (n *node) end(signal unix.Signal) {
	n.Helper()
	must(n.T, n.conn.Close())
	must(n.T, n.process.Process.Signal(signal))
	err := n.process.Wait()
	if signal == unix.SIGTERM && err != nil {
		n.Errorf("the driver ended with %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run runs a command on the host, which must succeed in time, and returns its
// output.
func run(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// patience is the time after which an operation counts as hanging. With udev on
// one slow processor a step takes half a second.
const patience = time.Minute

// wipe makes a disk blank, by zeroing its first 4 MiB.
func wipe(t *testing.T, disk string) {
	t.Helper()
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	_, err = f.Write(make([]byte, 4<<20))
	must(t, err)
}
