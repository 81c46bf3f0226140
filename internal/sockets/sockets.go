// Package sockets opens the unix sockets at which the roles serve CSI.
package sockets

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// Listen opens the socket of an endpoint, "unix:///path" or a path. Only the process's
// own user may use the socket. Listen makes the directory if it is missing. It replaces
// a socket at which nobody answers, because a process that crashed left it.
func Listen(endpoint string) (net.Listener, error) {
	path, err := Path(endpoint)
	if err != nil {
		return nil, err
	}
	listener, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	return listener, nil
}

// Path returns the absolute path of an endpoint.
func Path(endpoint string) (string, error) {
	path, ok := strings.CutPrefix(endpoint, "unix://")
	if !ok {
		path = strings.TrimPrefix(endpoint, "unix:")
	}
	if !strings.HasPrefix(path, "/") {
		return "", fmt.Errorf("endpoint %q is not an absolute path, with or without unix://", endpoint)
	}
	return path, nil
}

func listen(path string) (net.Listener, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode()&fs.ModeSocket == 0:
		return nil, errors.New("a file that is not a socket is in the way")
	default:
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			return nil, errors.New("another process is serving there")
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return nil, err
	}
	return listener, nil
}
