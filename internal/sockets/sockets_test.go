package sockets

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// TestListen_replacesStale: a stale socket is replaced, a served socket is not,
// and only the own user may connect.
func TestListen_replacesStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "csi.sock")
	first, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	// A killed process left this socket.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	l, err := Listen("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", st.Mode(), err)
	}
	if second, err := Listen(path); err == nil {
		second.Close()
		t.Error("took the socket of a living process")
	}
}

// TestListen_refuses: a file that is not a socket stays, and endpoints that are
// not absolute paths are refused.
func TestListen_refuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file); err == nil {
		t.Error("listens in place of a file")
	}
	if got, err := os.ReadFile(file); string(got) != "content" {
		t.Errorf("the file was changed: %q, %v", got, err)
	}
	for _, endpoint := range []string{"", "csi.sock", "unix://csi.sock", "tcp://127.0.0.1:1"} {
		if path, err := Path(endpoint); err == nil {
			t.Errorf("endpoint %q became %q", endpoint, path)
		}
	}
}
