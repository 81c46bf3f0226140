package driver

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// closedPools returns the pools of a node whose only pool cannot be opened.
func closedPools(t *testing.T) *pool.Set {
	t.Helper()
	c := pool.Config{Name: "fast", VolumeGroup: "vg-none", File: filepath.Join(t.TempDir(), "no", "directory"), Size: 1 << 30}
	s, err := pool.OpenSet(t.Context(), []pool.Config{c}, pool.Options{RunDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Serve takes over a stale socket, but not the socket of a running server, and
// removes its socket at the end.
func TestServe_socket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "csi.sock")
	// The socket of a process that was killed.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()

	d, err := New(Options{NodeName: "n1", KubeletDir: dir, Version: "v0.0.1", Pools: closedPools(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- d.Serve(ctx, "unix://"+path) }()

	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	wait, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	info, err := csi.NewIdentityClient(conn).GetPluginInfo(wait, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	if err != nil || info.GetName() != Name || info.GetVendorVersion() != "v0.0.1" {
		t.Fatalf("GetPluginInfo: %v, %v", info, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", st.Mode(), err)
	}
	if err := d.Serve(ctx, path); err == nil {
		t.Error("a second server took the socket of a living one")
	}
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the server does not stop")
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is still there")
	}
}
