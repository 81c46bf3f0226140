//go:build kernel

package driver

import (
	"cmp"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2/lvm2test"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// rig is a driver that serves on a socket, with pools on the scratch disks.
type rig struct {
	t *testing.T
	csi.IdentityClient
	csi.ControllerClient
	csi.NodeClient
	roleapi.NamesClient
	kubelet string
	configs []pool.Config
	pools   *pool.Set
	stop    func()
	hangs   bool // a disk does not answer, so the pools cannot be closed in good order
}

// newRig creates a pool on all scratch disks and starts the driver. It removes both
// after the test, even if the test leaves volumes staged.
func newRig(t *testing.T) *rig {
	t.Helper()
	return rigOf(t, pool.Config{Name: "fast", VolumeGroup: "vgdriver", Devices: scratch(t)})
}

// scratch returns the scratch disks.
func scratch(t *testing.T) []string {
	t.Helper()
	disks := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")
	if disks[0] == "" {
		t.Fatal("DMSNAP_TEST_DISKS names no scratch disks: run this by hack/testkernel")
	}
	return disks
}

func rigOf(t *testing.T, configs ...pool.Config) *rig {
	t.Helper()
	kubelet, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, kubelet: kubelet}
	for _, c := range configs {
		for _, d := range c.Devices {
			f, err := os.OpenFile(d, os.O_WRONLY, 0)
			r.must("open", err)
			_, err = f.Write(make([]byte, 4<<20))
			r.must("blank "+d, err)
			f.Close()
		}
		c.Clean = cmp.Or(c.Clean, pool.CleanFirstUse)                                               // do not wipe in the background
		c.Create, c.FirstStore, c.BurstRate = true, cmp.Or(c.FirstStore, 16*size.MiB), 200*size.MiB // the disks are small
		r.configs = append(r.configs, c)
	}
	r.start()
	t.Cleanup(func() {
		r.unmountAll()
		r.hydrated()
		r.stop()
		for _, c := range r.configs {
			for _, command := range []string{"vgck " + c.VolumeGroup, "vgchange -an " + c.VolumeGroup} {
				args := strings.Fields(command)
				if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
					t.Errorf("%s: %v: %s", command, err, out)
				}
			}
			if err := lvm2test.Remove(c.VolumeGroup); err != nil {
				t.Error(err)
			}
		}
	})
	return r
}

// start opens the pools and serves them.
func (r *rig) start() {
	t := r.t
	t.Helper()
	opening, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var err error
	r.pools, err = pool.OpenSet(opening, r.configs, pool.Options{})
	r.must("open pools", err)
	d, err := New(Options{NodeName: "node-1", KubeletDir: r.kubelet, Pools: r.pools})
	r.must("new driver", err)
	socket := filepath.Join(r.kubelet, "csi.sock")
	ctx, end := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Serve(ctx, "unix://"+socket) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	r.must("dial", err)
	r.IdentityClient, r.ControllerClient, r.NodeClient = csi.NewIdentityClient(conn), csi.NewControllerClient(conn), csi.NewNodeClient(conn)
	r.NamesClient = roleapi.NewNamesClient(conn)
	r.stop = func() {
		conn.Close()
		end()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
		if err := r.pools.Close(); (err != nil) != r.hangs {
			t.Errorf("close pools: %v", err)
		}
	}
}

// hydrated waits until no volume reads through a snapshot: LVM2 does not know the
// devices of such volumes.
func (r *rig) hydrated() {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		forks := 0
		for _, c := range r.configs {
			i, err := pool.Inspect(context.Background(), c, pool.Options{})
			if err != nil {
				return
			}
			for _, v := range i.Volumes {
				if v.Hydration != nil {
					forks++
				}
			}
		}
		if forks == 0 {
			return
		}
	}
	r.t.Error("restored volumes are not hydrated after a minute")
}

// unmountAll removes the mounts that a failed test leaves below the kubelet
// directory.
func (r *rig) unmountAll() {
	table, _ := os.ReadFile("/proc/self/mountinfo")
	lines := strings.Split(strings.TrimSpace(string(table)), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 4 && strings.HasPrefix(f[4], r.kubelet+"/") {
			r.t.Logf("left over: mount %s", f[4])
			exec.Command("umount", f[4]).Run()
		}
	}
}

// want checks the code of an error.
func (r *rig) want(what string, err error, code codes.Code) {
	r.t.Helper()
	if status.Code(err) != code {
		r.t.Errorf("%s: %v, want %v", what, err, code)
	}
}

func (r *rig) must(what string, err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatalf("%s: %v", what, err)
	}
}

// request returns a CreateVolumeRequest with a size in MiB.
func request(name string, mib int64, c *csi.VolumeCapability) *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{
		Name: name, VolumeCapabilities: []*csi.VolumeCapability{c},
		CapacityRange: &csi.CapacityRange{RequiredBytes: mib << 20},
	}
}

func fromSnapshot(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
		Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id},
	}}
}

func fromVolume(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id},
	}}
}

// volume creates a volume and returns its id.
func (r *rig) volume(q *csi.CreateVolumeRequest) string {
	r.t.Helper()
	v, err := r.CreateVolume(r.t.Context(), q)
	r.must("create volume "+q.GetName(), err)
	return v.GetVolume().GetVolumeId()
}

func (r *rig) snapshot(name, volume string) string {
	r.t.Helper()
	s, err := r.CreateSnapshot(r.t.Context(), &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: volume})
	r.must("create snapshot "+name, err)
	return s.GetSnapshot().GetSnapshotId()
}

func (r *rig) path(name string) string { return filepath.Join(r.kubelet, name) }

func (r *rig) stage(volume, at string, c *csi.VolumeCapability) error {
	r.t.Helper()
	_, err := r.NodeStageVolume(r.t.Context(), &csi.NodeStageVolumeRequest{
		VolumeId: volume, StagingTargetPath: r.path(at), VolumeCapability: c,
	})
	return err
}

func (r *rig) publish(volume, from, at string, c *csi.VolumeCapability, readOnly bool) error {
	r.t.Helper()
	_, err := r.NodePublishVolume(r.t.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: volume, StagingTargetPath: r.path(from), TargetPath: r.path(at), VolumeCapability: c, Readonly: readOnly,
	})
	return err
}

func (r *rig) unpublish(volume, at string) error {
	r.t.Helper()
	_, err := r.NodeUnpublishVolume(r.t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: volume, TargetPath: r.path(at)})
	return err
}

func (r *rig) unstage(volume, at string) error {
	r.t.Helper()
	_, err := r.NodeUnstageVolume(r.t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: volume, StagingTargetPath: r.path(at)})
	return err
}

func (r *rig) remove(volume string) error {
	r.t.Helper()
	_, err := r.DeleteVolume(r.t.Context(), &csi.DeleteVolumeRequest{VolumeId: volume})
	return err
}

// device returns the path of an active volume's device.
func (r *rig) device(volume string) string {
	r.t.Helper()
	i, ok := handle.Parse(volume)
	if !ok {
		r.t.Fatalf("%q is not an id", volume)
	}
	p, err := r.pools.Pool(i.Pool)
	r.must("pool of "+volume, err)
	path, err := p.Activate(r.t.Context(), i.LV)
	r.must("activate "+volume, err)
	return path
}

func (r *rig) write(at, content string) {
	r.t.Helper()
	r.must("write", os.WriteFile(filepath.Join(r.path(at), "file"), []byte(content), 0o600))
}

func (r *rig) read(at, content string) {
	r.t.Helper()
	got, err := os.ReadFile(filepath.Join(r.path(at), "file"))
	if err != nil || string(got) != content {
		r.t.Fatalf("file at %s: %q, %v; want %q", at, got, err, content)
	}
}
