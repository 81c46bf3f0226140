package registration

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func TestMain(m *testing.M) {
	interval, minBackoff, maxBackoff = 10*time.Millisecond, 10*time.Millisecond, 50*time.Millisecond
	goleak.VerifyTestMain(m)
}

// kubelet talks to the socket as the kubelet does.
func kubelet(t *testing.T, path string) registerapi.RegistrationClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return registerapi.NewRegistrationClient(conn)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func start(t *testing.T, ready func(context.Context) error) (r *Registration, stop func()) {
	t.Helper()
	r = New(Options{Driver: "d.example", Endpoint: "/k/plugins/d/csi.sock", KubeletDir: t.TempDir(), Ready: ready})
	if err := os.Mkdir(filepath.Dir(r.Path()), 0o750); err != nil {
		t.Fatal(err)
	}
	// A killed process left this socket.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.Path()})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { r.Run(ctx) })
	stop = func() { cancel(); done.Wait() }
	t.Cleanup(stop)
	return r, stop
}

func notify(t *testing.T, r *Registration, ok bool, reason string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := kubelet(t, r.Path()).NotifyRegistrationStatus(ctx, &registerapi.RegistrationStatus{PluginRegistered: ok, Error: reason}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
}

// socket identifies the current socket; nil if there is none.
func socket(r *Registration) os.FileInfo {
	info, err := os.Lstat(r.Path())
	if err != nil {
		return nil
	}
	return info
}

// TestRegistration_once: the driver is offered only once it answers, replaces a
// stale socket, and removes its own socket at the end.
func TestRegistration_once(t *testing.T) {
	var answers atomic.Bool
	var asked atomic.Int32
	r, stop := start(t, func(context.Context) error {
		asked.Add(1)
		if !answers.Load() {
			return errors.New("not yet")
		}
		return nil
	})
	eventually(t, "the driver was asked some times", func() bool { return asked.Load() > 3 })
	if conn, err := net.Dial("unix", r.Path()); err == nil {
		conn.Close()
		t.Fatal("offered before the driver answers")
	}
	answers.Store(true)
	eventually(t, "the stale socket is replaced", func() bool {
		conn, err := net.Dial("unix", r.Path())
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	info, err := kubelet(t, r.Path()).GetInfo(ctx, &registerapi.InfoRequest{}, grpc.WaitForReady(true))
	if err != nil || info.GetType() != "CSIPlugin" || info.GetName() != "d.example" || info.GetEndpoint() != "/k/plugins/d/csi.sock" || len(info.GetSupportedVersions()) != 1 {
		t.Fatalf("%v, %v", info, err)
	}
	if r.Registered() {
		t.Error("registered before the kubelet said so")
	}
	notify(t, r, true, "")
	if !r.Registered() {
		t.Error("not registered")
	}
	stop()
	if socket(r) != nil || r.Registered() {
		t.Error("the socket is still there after the end")
	}
}

// TestRegistration_again: the driver is offered again after a refusal or when
// its socket is gone, and another process's socket is left alone.
func TestRegistration_again(t *testing.T) {
	r, _ := start(t, func(context.Context) error { return nil })
	// Refused: another socket, so that the kubelet looks again.
	notify(t, r, false, "no such CSIDriver")
	eventually(t, "offered again after a refusal", func() bool { return socket(r) != nil })
	notify(t, r, true, "")
	eventually(t, "registered", r.Registered)
	// The directory is emptied, and even removed, with the kubelet's restart.
	for _, path := range []string{r.Path(), filepath.Dir(r.Path())} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		eventually(t, "offered again after "+path+" was removed", func() bool { return socket(r) != nil })
		notify(t, r, true, "")
		eventually(t, "registered", r.Registered)
	}
	// Another process's socket in our place is left alone.
	other, err := net.Listen("unix", r.Path()+".new")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(r.Path()+".new", r.Path()); err != nil {
		t.Fatal(err)
	}
	theirs := socket(r)
	eventually(t, "noticed", func() bool { return !r.Registered() })
	time.Sleep(5 * maxBackoff)
	if now := socket(r); now == nil || !os.SameFile(theirs, now) {
		t.Error("another process's socket was taken")
	}
	other.Close()
	notify(t, r, true, "")
	eventually(t, "registered", r.Registered)
}
