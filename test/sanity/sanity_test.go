//go:build kernel

// Package sanity runs csi-test's sanity suite against the driver on a real
// kernel: with file systems and with block devices.
package sanity

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/driver"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestSanity_ofDriver: csi-sanity passes against the driver on a real kernel.
func TestSanity_ofDriver(t *testing.T) {
	kubelet := serve(t)
	socket := "unix://" + filepath.Join(kubelet, "csi.sock")
	run(t, socket, "", kubelet)
}

// serve starts the driver with a new pool on the scratch disks and returns its
// kubelet directory, which has its socket.
func serve(t *testing.T) string {
	t.Helper()
	disks := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")
	for _, d := range disks {
		f, err := os.OpenFile(d, os.O_WRONLY, 0)
		if err != nil {
			t.Fatalf("DMSNAP_TEST_DISKS must name scratch disks; run this test by hack/testkernel: %v", err)
		}
		if _, err := f.Write(make([]byte, 4<<20)); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	pools, err := pool.OpenSet(ctx, []pool.Config{{
		Name: "sanity", VolumeGroup: "vgsanity", Devices: disks, Create: true, FirstStore: 8 * size.MiB,
	}}, pool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := pools.Pool("sanity")
	if err != nil {
		t.Fatal(err)
	}
	kubelet := t.TempDir()
	d, err := driver.New(driver.Options{NodeName: "sanity", KubeletDir: kubelet, Pools: pools})
	if err != nil {
		t.Fatal(err)
	}
	serving, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Serve(serving, "unix://"+filepath.Join(kubelet, "csi.sock")) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		left, err := p.Volumes(context.Background())
		if err != nil || len(left) != 0 {
			t.Errorf("volumes left over: %v, %v", left, err)
		}
		if err := pools.Close(); err != nil {
			t.Error(err)
		}
	})
	return kubelet
}
